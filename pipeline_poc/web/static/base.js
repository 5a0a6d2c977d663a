/** Begin of the paths of the entity that the page is about: nothing for posts, `/entities/comments` for comments. */
export const base = location.pathname.replace(/\/pipeline$/, "");
