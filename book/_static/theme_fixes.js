/* What the theme and Sphinx leave undone: names and roles, search from a file, small pictures. */

// a page opened as a file may not read others, so results come without excerpts of their pages
if (location.protocol === 'file:') DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

document.addEventListener('DOMContentLoaded', () => {
  document.querySelectorAll('.bd-sidenav summary').forEach(toggle => {
    const page = toggle.closest('li').querySelector('a')?.textContent.trim();
    toggle.setAttribute('aria-label', `Pages below ${page}`);
  });

  // the bibliography is called a list, whose entries must be items
  document.querySelectorAll('.citation-list > .citation').forEach(entry => {
    entry.setAttribute('role', 'listitem');
  });

  // a heading without words names nothing: it is an empty cell
  document.querySelectorAll('article th').forEach(head => {
    if (head.textContent.trim()) return;
    const cell = document.createElement('td');
    for (const {name, value} of head.attributes) cell.setAttribute(name, value);
    head.replaceWith(cell);
  });

  // type in a picture is small on a narrow screen: a tap shows the picture by itself
  document.querySelectorAll('.bd-article img:not(a img)').forEach(image => {
    const link = document.createElement('a');
    link.href = image.src;
    link.title = 'The picture by itself, in full size';
    link.className = 'full-size';
    image.replaceWith(link);
    link.append(image);
  });
});
