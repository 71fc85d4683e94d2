/**
 * LaTeX's commands that stand for a character, by what the character is in a formula. TeX's kinds
 * decide on the space around it: "ord" is a letter or a sign, "bin" stands between two terms, "rel"
 * between two sides, "op" is a large operator, "open" and "close" are brackets, "punct" ends a term.
 */

/** Each row: the kind of its symbols, then their names and characters in turn. */
const ROWS = [
  ["letter", `alpha α beta β gamma γ delta δ epsilon ϵ varepsilon ε zeta ζ eta η theta θ vartheta ϑ iota ι kappa κ
    lambda λ mu μ nu ν xi ξ omicron ο pi π varpi ϖ rho ρ varrho ϱ sigma σ varsigma ς tau τ upsilon υ phi ϕ varphi φ
    chi χ psi ψ omega ω varkappa ϰ imath ı jmath ȷ`],
  ["ord", `Gamma Γ Delta Δ Theta Θ Lambda Λ Xi Ξ Pi Π Sigma Σ Upsilon Υ Phi Φ Psi Ψ Omega Ω digamma ϝ
    infty ∞ partial ∂ nabla ∇ hbar ℏ hslash ℏ ell ℓ emptyset ∅ varnothing ∅ forall ∀ exists ∃ nexists ∄ top ⊤ bot ⊥
    angle ∠ measuredangle ∡ triangle △ Re ℜ Im ℑ aleph ℵ beth ℶ gimel ℷ wp ℘ eth ð mho ℧ Finv Ⅎ complement ∁
    prime ′ backprime ‵ degree ° checkmark ✓ surd √ neg ¬ lnot ¬ square □ Box □ blacksquare ■ Diamond ◇ lozenge ◊
    clubsuit ♣ diamondsuit ♢ heartsuit ♡ spadesuit ♠ flat ♭ natural ♮ sharp ♯ bigstar ★ blacktriangle ▲ S § P ¶
    pounds £ copyright © AA Å aa å ae æ AE Æ oe œ OE Œ ss ß o ø O Ø ldots … dots … dotsc … dotsb ⋯ dotsm ⋯ dotsi ⋯
    dotso … cdots ⋯ vdots ⋮ ddots ⋱ mathellipsis … therefore ∴ because ∵ QED ∎ backslash \\ Bbbk 𝕜`],
  ["bin", `pm ± mp ∓ times × div ÷ ast ∗ star ⋆ circ ∘ bullet ∙ cdot ⋅ cdotp ⋅ cap ∩ cup ∪ uplus ⊎ sqcap ⊓ sqcup ⊔
    vee ∨ lor ∨ wedge ∧ land ∧ setminus ∖ smallsetminus ∖ wr ≀ diamond ⋄ bigtriangleup △ bigtriangledown ▽
    triangleleft ◃ triangleright ▹ lhd ⊲ rhd ⊳ unlhd ⊴ unrhd ⊵ oplus ⊕ ominus ⊖ otimes ⊗ oslash ⊘ odot ⊙
    bigcirc ◯ dagger † ddagger ‡ amalg ⨿ ltimes ⋉ rtimes ⋊ dotplus ∔ boxplus ⊞ boxminus ⊟ boxtimes ⊠ boxdot ⊡
    barwedge ⊼ veebar ⊻ curlyvee ⋎ curlywedge ⋏ circledast ⊛ circledcirc ⊚ intercal ⊺ Cap ⋒ Cup ⋓`],
  ["rel", `le ≤ leq ≤ ge ≥ geq ≥ ne ≠ neq ≠ ll ≪ gg ≫ lll ⋘ ggg ⋙ leqslant ⩽ geqslant ⩾ leqq ≦ geqq ≧ lesssim ≲ gtrsim ≳
    lessapprox ⪅ gtrapprox ⪆ lessgtr ≶ gtrless ≷ nless ≮ ngtr ≯ nleq ≰ ngeq ≱ lneq ⪇ gneq ⪈ equiv ≡ sim ∼ nsim ≁
    simeq ≃ cong ≅ ncong ≇ approx ≈ approxeq ≊ asymp ≍ doteq ≐ triangleq ≜ coloneqq ≔ eqqcolon ≕ bumpeq ≏ circeq ≗
    eqsim ≂ backsim ∽ propto ∝ varpropto ∝ prec ≺ succ ≻ preceq ⪯ succeq ⪰ preccurlyeq ≼ succcurlyeq ≽ nprec ⊀ nsucc ⊁
    subset ⊂ supset ⊃ subseteq ⊆ supseteq ⊇ nsubseteq ⊈ nsupseteq ⊉ subsetneq ⊊ supsetneq ⊋ sqsubset ⊏ sqsupset ⊐
    sqsubseteq ⊑ sqsupseteq ⊒ in ∈ ni ∋ owns ∋ notin ∉ mid ∣ nmid ∤ parallel ∥ nparallel ∦ perp ⟂ vdash ⊢ dashv ⊣
    models ⊨ vDash ⊨ Vdash ⊩ Vvdash ⊪ nvdash ⊬ nvDash ⊭ bowtie ⋈ smile ⌣ frown ⌢ between ≬ pitchfork ⋔ multimap ⊸
    trianglelefteq ⊴ trianglerighteq ⊵ vartriangleleft ⊲ vartriangleright ⊳ lt < gt > colon :`],
  ["rel", `to → rightarrow → gets ← leftarrow ← leftrightarrow ↔ uparrow ↑ downarrow ↓ updownarrow ↕ Rightarrow ⇒ Leftarrow ⇐
    Leftrightarrow ⇔ Uparrow ⇑ Downarrow ⇓ Updownarrow ⇕ implies ⟹ impliedby ⟸ iff ⟺ longrightarrow ⟶ longleftarrow ⟵
    longleftrightarrow ⟷ Longrightarrow ⟹ Longleftarrow ⟸ Longleftrightarrow ⟺ mapsto ↦ longmapsto ⟼
    hookrightarrow ↪ hookleftarrow ↩ rightharpoonup ⇀ rightharpoondown ⇁ leftharpoonup ↼ leftharpoondown ↽
    rightleftharpoons ⇌ leftrightharpoons ⇋ nearrow ↗ searrow ↘ swarrow ↙ nwarrow ↖ rightsquigarrow ⇝ leadsto ⇝
    leftrightarrows ⇆ rightleftarrows ⇄ rightrightarrows ⇉ leftleftarrows ⇇ upuparrows ⇈ downdownarrows ⇊
    twoheadrightarrow ↠ twoheadleftarrow ↞ rightarrowtail ↣ leftarrowtail ↢ nrightarrow ↛ nleftarrow ↚ nRightarrow ⇏
    nLeftarrow ⇍ nleftrightarrow ↮ nLeftrightarrow ⇎ Rrightarrow ⇛ Lleftarrow ⇚ curvearrowright ↷ curvearrowleft ↶
    circlearrowright ↻ circlearrowleft ↺ dashrightarrow ⇢ dashleftarrow ⇠ upharpoonright ↾ restriction ↾`],
  ["op", "sum ∑ prod ∏ coprod ∐ bigcap ⋂ bigcup ⋃ bigoplus ⨁ bigotimes ⨂ bigodot ⨀ bigvee ⋁ bigwedge ⋀ biguplus ⨄ bigsqcup ⨆"],
  ["integral", "int ∫ iint ∬ iiint ∭ iiiint ⨌ oint ∮ oiint ∯ oiiint ∰ smallint ∫"],
  ["open", "lbrace { lbrack [ lparen ( langle ⟨ lfloor ⌊ lceil ⌈ lvert | lVert ‖ lgroup ⟮ lmoustache ⎰ llbracket ⟦ ulcorner ⌜ llcorner ⌞"],
  ["close", "rbrace } rbrack ] rparen ) rangle ⟩ rfloor ⌋ rceil ⌉ rvert | rVert ‖ rgroup ⟯ rmoustache ⎱ rrbracket ⟧ urcorner ⌝ lrcorner ⌟"],
  ["fence", "vert | Vert ‖"],
];

/** Signs that are no letters, and commands of one sign. */
const SIGNS = {
  bin: "+ * − ±×÷·",
  rel: "=<>:≤≥≠≈≡∈∉→⇒⇔↔←",
  open: "([",
  close: ")]",
  punct: ",;",
  fence: "|",
};

/** The functions that are written as words; those of the second row have limits below. */
const FUNCTIONS = `sin cos tan cot sec csc arcsin arccos arctan arccot sinh cosh tanh coth sech csch exp log ln lg deg dim hom ker arg
  sgn tr Tr rank erf softmax`;
const WITH_LIMITS = { lim: "lim", limsup: "lim sup", liminf: "lim inf", varlimsup: "lim sup", varliminf: "lim inf", sup: "sup", inf: "inf", max: "max", min: "min", argmax: "arg max", argmin: "arg min", det: "det", gcd: "gcd", lcm: "lcm", Pr: "Pr", injlim: "inj lim", projlim: "proj lim" };

/** Spaces by command, in em. */
export const SPACES = {
  ",": "0.1667em", thinspace: "0.1667em", ":": "0.2222em", ">": "0.2222em", medspace: "0.2222em", ";": "0.2778em", thickspace: "0.2778em",
  "!": "-0.1667em", negthinspace: "-0.1667em", negmedspace: "-0.2222em", negthickspace: "-0.2778em", " ": "0.25em", "\n": "0.25em", "~": "0.25em", nobreakspace: "0.25em",
  enspace: "0.5em", enskip: "0.5em", quad: "1em", qquad: "2em",
};

/** Marks above or below an argument: the character, whether it grows with it, and on which side it stands. */
export const ACCENTS = {
  hat: ["^"], widehat: ["^", true], tilde: ["~"], widetilde: ["~", true], bar: ["¯"], vec: ["→"], dot: ["˙"], ddot: ["¨"], dddot: ["⃛"],
  check: ["ˇ"], widecheck: ["ˇ", true], breve: ["˘"], acute: ["´"], grave: ["`"], mathring: ["˚"],
  overrightarrow: ["→", true], overleftarrow: ["←", true], overleftrightarrow: ["↔", true], underrightarrow: ["→", true, "below"], underleftarrow: ["←", true, "below"],
  overbrace: ["⏞", true], underbrace: ["⏟", true, "below"], overbracket: ["⎴", true], underbracket: ["⎵", true, "below"], overparen: ["⏜", true], underparen: ["⏝", true, "below"],
};

/** Arrows with a text above: `\xrightarrow{f}`. */
export const LONG_ARROWS = { xrightarrow: "→", xleftarrow: "←", xleftrightarrow: "↔", xRightarrow: "⇒", xLeftarrow: "⇐", xLeftrightarrow: "⇔", xmapsto: "↦", xlongequal: "=", xhookrightarrow: "↪", xhookleftarrow: "↩" };

const symbols = new Map();
for (const [kind, words] of ROWS) {
  const parts = words.trim().split(/\s+/);
  for (let at = 0; at < parts.length; at += 2) symbols.set(parts[at], { kind, text: parts[at + 1] });
}
for (const name of FUNCTIONS.trim().split(/\s+/)) symbols.set(name, { kind: "function", text: name });
for (const [name, text] of Object.entries(WITH_LIMITS)) symbols.set(name, { kind: "limit", text: text.replace(" ", "\u2009") });
for (const sign of "%$#&_") symbols.set(sign, { kind: "ord", text: sign });
symbols.set("{", { kind: "open", text: "{" });
symbols.set("}", { kind: "close", text: "}" });
symbols.set("|", { kind: "fence", text: "‖" });

const signs = new Map();
for (const [kind, text] of Object.entries(SIGNS)) for (const sign of text) signs.set(sign, { kind, text: sign });
for (const text of "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") signs.set(text, { kind: "letter", text });
signs.set("-", { kind: "bin", text: "−" });
signs.set("*", { kind: "bin", text: "∗" });
signs.set("/", { kind: "ord", text: "/" });

/** The symbol that a command stands for, by its name without the backslash; undefined for none. */
export function symbolOf(name) {
  return symbols.get(name);
}

/** What a single character is. */
export function signOf(character) {
  return signs.get(character) ?? { kind: /\p{L}/u.test(character) ? "letter" : "ord", text: character };
}

/** The character of a delimiter as it follows `\left`; empty for `.`, and undefined for no delimiter. */
export function delimiterOf(token) {
  if (token === ".") return "";
  if (token === "<") return "⟨";
  if (token === ">") return "⟩";
  if ("()[]|/".includes(token)) return token;
  const found = token[0] === "\\" ? symbols.get(token.slice(1)) : undefined;
  return found && (["open", "close", "fence"].includes(found.kind) || /^[↑↓↕⇑⇓⇕\\∣∥]$/.test(found.text)) ? found.text : undefined;
}

/** The first characters of the alphabets in Unicode: capitals, small letters, digits. */
const ALPHABETS = {
  bf: [0x1d400, 0x1d41a, 0x1d7ce], it: [0x1d434, 0x1d44e], bi: [0x1d468, 0x1d482, 0x1d7ce], cal: [0x1d49c, 0x1d4b6], scr: [0x1d49c, 0x1d4b6],
  frak: [0x1d504, 0x1d51e], bb: [0x1d538, 0x1d552, 0x1d7d8], sf: [0x1d5a0, 0x1d5ba, 0x1d7e2], tt: [0x1d670, 0x1d68a, 0x1d7f6],
};
const GREEK = { bf: [0x1d6a8, 0x1d6c2], bi: [0x1d71c, 0x1d736] };
/** Letters that Unicode had before the alphabets, by their place in them. */
const ELSEWHERE = {
  0x1d455: "ℎ", 0x1d49d: "ℬ", 0x1d4a0: "ℰ", 0x1d4a1: "ℱ", 0x1d4a3: "ℋ", 0x1d4a4: "ℐ", 0x1d4a7: "ℒ", 0x1d4a8: "ℳ", 0x1d4ad: "ℛ", 0x1d4ba: "ℯ", 0x1d4bc: "ℊ", 0x1d4c4: "ℴ",
  0x1d506: "ℭ", 0x1d50b: "ℌ", 0x1d50c: "ℑ", 0x1d515: "ℜ", 0x1d51d: "ℨ", 0x1d53a: "ℂ", 0x1d53f: "ℍ", 0x1d545: "ℕ", 0x1d547: "ℙ", 0x1d548: "ℚ", 0x1d549: "ℝ", 0x1d551: "ℤ",
};

/** `text` in the letters of an alphabet; characters that it lacks stay as they are. */
export function inAlphabet(text, alphabet) {
  if (!(alphabet in ALPHABETS)) return text;
  return [...text].map((character) => letterOf(character, ALPHABETS[alphabet], GREEK[alphabet])).join("");
}

function letterOf(character, [capitals, small, digits], greek) {
  const code = character.codePointAt(0);
  const from = (first, base) => ELSEWHERE[base + code - first] ?? String.fromCodePoint(base + code - first);
  if (/[A-Z]/.test(character)) return from(0x41, capitals);
  if (/[a-z]/.test(character)) return from(0x61, small);
  if (digits && /[0-9]/.test(character)) return from(0x30, digits);
  if (greek && /[Α-Ω]/.test(character)) return from(0x391, greek[0]);
  if (greek && /[α-ω]/.test(character)) return from(0x3b1, greek[1]);
  return character;
}
