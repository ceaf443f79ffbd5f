/* Tables to search, filter, sort and download, of helpers/book/sortable.py. Text of cells is only ever
   read as text and written as text. */
(() => {
  const MISSING = ['', '–'];
  const MARKS = {none: '↕', ascending: '▲', descending: '▼'};

  const element = (name, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  };

  // a cell's value, and its interval where it has one
  const parts = cell => {
    const interval = cell.querySelector('small')?.textContent ?? '';
    const text = cell.textContent.slice(0, cell.textContent.length - interval.length);
    return [text.replaceAll('\u00a0', ' ').trim(), ...(interval.match(/[^\[\], ]+/g) ?? [])];
  };
  const number = text => {
    const digits = text.match(/[-−]?[0-9.]+(e[-+]?[0-9]+)?/);
    return digits ? +digits[0].replace('−', '-') : NaN;
  };
  const order = (i, isNumber, sign) => (a, b) => {
    const [x, y] = [a, b].map(row => parts(row.cells[i])[0]);
    const [m, n] = isNumber ? [number(x), number(y)] : [x, y];
    const [noM, noN] = isNumber ? [isNaN(m), isNaN(n)] : [m, n].map(t => MISSING.includes(t));
    if (noM || noN) return noM - noN;
    return sign * (isNumber ? m - n : m.localeCompare(n));
  };

  const quoted = text => `"${text.replaceAll('"', '""')}"`;
  // a spreadsheet takes text that begins so for a formula
  const harmless = text => /^[=+@\t\r-]/.test(text) ? `'${text}` : text;
  const csv = (heads, rows) => {
    const columns = heads.flatMap((head, i) => head.hidden ? [] : [{
      i,
      isNumber: head.classList.contains('number'),
      name: head.dataset.name,
      hasInterval: rows.some(row => parts(row.cells[i]).length > 1),
    }]);
    const line = cells => cells.map(quoted).join(',');
    const title = ({name, hasInterval}) =>
      hasInterval ? [name, `${name} low`, `${name} high`] : [name];
    const values = ({i, isNumber, hasInterval}, row) => {
      const found = parts(row.cells[i]).map(text => MISSING.includes(text) ? '' : text);
      const all = hasInterval ? [0, 1, 2].map(j => found[j] ?? '') : [found[0]];
      return all.map(text => isNumber ? text.replace('−', '-') : harmless(text));
    };
    return [line(columns.flatMap(title).map(harmless)),
      ...rows.map(row => line(columns.flatMap(column => values(column, row))))].join('\r\n') + '\r\n';
  };

  const start = box => {
    box.dataset.ready = '1';
    const body = box.querySelector('tbody'), heads = [...box.querySelectorAll('th')];
    const rows = [...body.rows];
    const search = box.querySelector('input[type=search]'), choice = box.querySelector('select');
    const status = box.querySelector('[role=status]');
    let first = +box.dataset.first || Infinity;
    const more = element('button', {type: 'button', className: 'table-more'});
    box.append(more);

    const words = new Map(rows.map(row =>
      [row, [...row.cells].map(cell => cell.textContent).join(' ').toLowerCase()]));
    let matching;
    const update = () => {
      const wanted = search.value.toLowerCase().split(/\s+/);
      matching = [...body.rows].filter(row =>
        (choice.value === 'all' || row.dataset.kind === choice.value) &&
        wanted.every(word => words.get(row).includes(word)));
      const shown = new Set(matching.slice(0, first));
      rows.forEach(row => row.hidden = !shown.has(row));
      status.textContent = `${shown.size} of ${rows.length} rows`;
      more.hidden = shown.size === matching.length;
      more.textContent = `Show all ${matching.length} rows`;
    };
    search.oninput = choice.onchange = update;
    more.onclick = () => { first = Infinity; update(); };

    const mark = (head, state) => {
      head.setAttribute('aria-sort', state);
      head.querySelector('[aria-hidden]').textContent = `\u00a0${MARKS[state]}`;
    };
    const columns = box.querySelector('fieldset');
    heads.forEach((head, i) => {
      head.dataset.name = head.textContent.trim();
      const arrow = element('span');
      arrow.setAttribute('aria-hidden', 'true');
      const button = element('button', {type: 'button'}, ...head.childNodes, arrow);
      button.style = 'font:inherit;color:inherit;background:none;border:0;padding:0;' +
        'text-align:inherit;cursor:pointer';
      head.append(button);
      mark(head, 'none');
      button.onclick = () => {
        const up = head.getAttribute('aria-sort') !== 'ascending';
        heads.forEach(h => mark(h, h !== head ? 'none' : up ? 'ascending' : 'descending'));
        const isNumber = head.classList.contains('number');
        body.append(...[...body.rows].sort(order(i, isNumber, up ? 1 : -1)));
        update();
      };
      if (!i) return;  // the first column names the rows
      const check = element('input', {type: 'checkbox', checked: true});
      check.onchange = () => {
        head.hidden = !check.checked;
        rows.forEach(row => row.cells[i].hidden = !check.checked);
      };
      columns.append(element('label', {}, check, ` ${head.dataset.name}`));
    });

    box.querySelector('.table-choice > button').onclick = () => {
      const file = new Blob([csv(heads, matching)], {type: 'text/csv'});
      const link = element('a', {href: URL.createObjectURL(file), download: `${box.dataset.name}.csv`});
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    };
    update();
    box.querySelector('.table-choice').hidden = false;
  };

  const startAll = () => document.querySelectorAll('.leaderboard:not([data-ready])').forEach(start);
  if (document.readyState === 'loading') document.addEventListener('DOMContentLoaded', startAll);
  else startAll();
})();
