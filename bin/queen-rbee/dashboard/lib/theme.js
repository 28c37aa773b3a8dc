// Before the page is painted: the scheme that the reader chose here. A classic script, so that nothing flickers.
document.documentElement.dataset.theme = localStorage.getItem('rbee.theme') ?? 'auto';
