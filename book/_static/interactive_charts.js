/* Interactive charts: Vega is loaded when the first one is opened, and each is drawn again in the
   colours of the page when its theme changes. Below a chart whose points can be chosen stands a list
   of those that are. */
(() => {
  const bundle = new URL('vega/bundle.js', document.currentScript.src);
  let library;
  const load = () => library ??= new Promise((done, failed) => {
    const script = document.createElement('script');
    script.src = bundle;
    script.onload = done;
    script.onerror = failed;
    document.head.append(script);
  });

  const colours = box => {
    const {color, fontFamily} = getComputedStyle(box);
    const faint = 'rgba(128, 128, 128, 0.25)';
    const text = {labelColor: color, titleColor: color, labelFontSize: 12, titleFontSize: 12};
    return {
      background: 'transparent',
      font: fontFamily.replaceAll('"', "'"),
      view: {stroke: faint},
      axis: {...text, titleFontWeight: 'normal', gridColor: faint, domainColor: faint,
        tickColor: faint},
      legend: {
        ...text, orient: 'bottom', direction: 'horizontal', columns: {signal: 'width > 500 ? 6 : 2'},
        symbolBaseFillColor: color, symbolBaseStrokeColor: color,
      },
      title: {color},
      text: {fontSize: 12},
    };
  };

  // The items of the chart's points: symbols that a screen reader hears, which no legend made.
  const points = mark => mark.marktype === 'symbol' && mark.aria !== false && mark.role === 'mark'
    ? mark.items : (mark.items ?? []).flatMap(item => item.items ? item.items.flatMap(points) : []);

  const list = box => {
    const all = points(box.chart.view.scenegraph().root);
    const chosen = all.filter(point => point.opacity === 1).map(point => point.datum);
    const names = chosen.map(row => `${row.method} (${row.finding})`).join(', ');
    box.querySelector('output').textContent = chosen.length === all.length
      ? `All ${all.length} methods are chosen.`
      : `${chosen.length} of ${all.length} methods are chosen${names && ': '}${names}.`;
  };

  const draw = async box => {
    await load();
    const spec = JSON.parse(box.querySelector('script').textContent);
    spec.width = 'container';
    if (box.chart) {
      const {view} = box.chart;
      spec.params.filter(p => 'value' in p).forEach(p => p.value = view.signal(p.name));
      box.chart.finalize();
    }
    box.chart = await vegaEmbed(box.querySelector('.interactive-plot'), spec, {
      renderer: 'svg', actions: false, defaultStyle: false, logLevel: 1, config: colours(box),
      tooltip: {theme: box.theme === 'dark' ? 'dark' : 'light'},
      patch: vega => {  // the rectangle of a choice says nothing that the list does not
        vega.marks.filter(m => /_brush(_bg)?$/.test(m.name)).forEach(m => { m.aria = false; });
        return vega;
      },
    });
    if (box.querySelector('output')) {
      list(box);
      const later = async () => { await box.chart.view.runAsync(); list(box); };
      spec.params.forEach(p => box.chart.view.addSignalListener(p.name, later));
    }
    box.dataset.drawn = box.theme;
  };

  document.addEventListener('DOMContentLoaded', () => {
    const boxes = [...document.querySelectorAll('.interactive-chart')];
    if (!boxes.length) return;
    const update = () => boxes.forEach(box => {
      const {theme} = document.documentElement.dataset;
      if (!box.open || box.theme === theme) return;
      box.theme = theme;
      box.drawing = Promise.resolve(box.drawing).then(() => draw(box));  // one after another
    });
    boxes.forEach(box => {
      box.hidden = false;
      box.addEventListener('toggle', update);
    });
    new MutationObserver(update).observe(
      document.documentElement, {attributes: true, attributeFilter: ['data-theme']});
  });
})();
