/** The page's words in Chinese. */

export const CHINESE = {};
