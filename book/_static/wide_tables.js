/* Wide tables: a hint while columns are out of sight, the first column fixed, and a box that the
   keyboard reaches. A table that fits is left alone. */
document.addEventListener('DOMContentLoaded', () => {
  const BOXES =
    '.pst-scrollable-table-container, .cell_output > .output.text_html, .table-scroll';

  const heading = box => {
    const title = box.closest('section')?.querySelector('h1, h2, h3, h4')?.cloneNode(true);
    title?.querySelectorAll('.headerlink').forEach(link => link.remove());
    return title?.textContent.trim() ?? document.title;
  };

  const watch = box => {
    const table = box.querySelector('table');
    if (!table || box.querySelector('.table-scroll')) return;
    const hint = document.createElement('p');
    hint.className = 'table-hint';
    hint.textContent = 'More columns to the right: scroll →';
    hint.hidden = true;
    box.before(hint);
    // a cell over several rows moves the first cell of the others into the second column
    const plain = !table.querySelector('tbody [rowspan]:not([rowspan="1"])');

    const update = () => {
      const wide = box.scrollWidth > box.clientWidth + 1;
      const first = table.tBodies[0]?.rows[0]?.cells[0];
      hint.hidden = !wide;
      box.classList.toggle('wide-table', wide);
      box.classList.toggle(
        'first-column-fixed', wide && plain && first?.offsetWidth < box.clientWidth / 2);
      box.classList.toggle(
        'more-to-the-right', box.scrollLeft + box.clientWidth < box.scrollWidth - 1);
      if (wide) {
        box.tabIndex = 0;
        box.setAttribute('role', 'group');
        box.setAttribute('aria-label', `Table: ${heading(box)}`);
      } else {
        for (const name of ['tabindex', 'role', 'aria-label']) box.removeAttribute(name);
      }
    };
    box.addEventListener('scroll', update, {passive: true});
    const observer = new ResizeObserver(update);
    observer.observe(box);
    observer.observe(table);
  };
  document.querySelectorAll(BOXES).forEach(watch);
});
