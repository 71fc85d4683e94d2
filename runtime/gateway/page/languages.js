/**
 * The languages of code blocks: which words are comments, strings, numbers and keywords. Every
 * pattern takes the text from a place on and never goes back, so that the time is linear.
 */

const COMMENT = {
  slashes: String.raw`\/\/[^\n]*|\/\*[^]*?(?:\*\/|$)`,
  hash: String.raw`#[^\n]*`,
  dashes: String.raw`--[^\n]*|\/\*[^]*?(?:\*\/|$)`,
  block: String.raw`\/\*[^]*?(?:\*\/|$)`,
  markup: String.raw`<!--[^]*?(?:-->|$)`,
  semicolon: String.raw`[;#][^\n]*`,
  percent: String.raw`%[^\n]*`,
  none: String.raw`(?!)`,
};
const DOUBLE = String.raw`"(?:[^"\\\n]+|\\[^])*"?`;
const SINGLE = String.raw`'(?:[^'\\\n]+|\\[^])*'?`;
const TICKS = String.raw`\x60(?:[^\x60\\]+|\\[^])*\x60?`;
const TRIPLE = String.raw`(?:"""[^]*?|'''[^]*?)(?:"""|'''|$)`;
const CHARACTER = String.raw`'(?:[^'\\\n]|\\[^\n]{1,9})'`;
const STRING = {
  both: `${DOUBLE}|${SINGLE}`,
  script: `${DOUBLE}|${SINGLE}|${TICKS}`,
  python: `[rbfuRBFU]{0,2}(?:${TRIPLE}|${DOUBLE}|${SINGLE})`,
  strict: `${DOUBLE}|${CHARACTER}`, // 'a is a lifetime or a label, not a string
  raw: `${DOUBLE}|${CHARACTER}|\\x60[^\\x60]*\\x60?`,
  sql: String.raw`'[^']*'?|"[^"]*"?`,
};
const NUMBER = String.raw`\b0[xXbBoO][\da-fA-F_]+\b|\b\d[\d_]*(?:\.\d[\d_]*)?(?:[eE][+-]?\d+)?[a-zA-Z%]*`;
const WORD = String.raw`[\p{L}_$@][\p{L}\p{N}_$]*`;

const WORDS = {
  script: "abstract any as async await boolean break case catch class const continue declare default delete do else enum export extends false finally for from function get if implements import in infer instanceof interface is keyof let namespace never new null number object of override private protected public readonly return satisfies set static string super switch symbol this throw true try type typeof undefined unknown var void while yield",
  python: "False None True and as assert async await break case class continue def del elif else except finally for from global if import in is lambda match nonlocal not or pass raise return self try type while with yield",
  c: "alignas alignof auto bool break case catch char class concept const consteval constexpr constinit continue co_await co_return co_yield decltype default delete do double dynamic_cast else enum explicit export extern false final float for friend goto if inline int long mutable namespace new noexcept nullptr operator override private protected public register reinterpret_cast requires restrict return short signed sizeof static static_assert static_cast struct switch template this throw true try typedef typeid typename union unsigned using virtual void volatile wchar_t while",
  java: "abstract assert boolean break byte case catch char class const continue default do double else enum extends false final finally float for goto if implements import instanceof int interface long native new null package permits private protected public record return sealed short static strictfp super switch synchronized this throw throws transient true try var void volatile while yield fun val when object override data is in companion internal suspend lateinit open operator async await base decimal delegate event foreach get init lock namespace nameof out params partial readonly ref required set string struct using virtual where bool",
  go: "any append bool break byte case chan const continue default defer else error fallthrough false float32 float64 for func go goto if import int int32 int64 interface len make map new nil package panic range return rune select string struct switch true type uint uint32 uint64 var",
  rust: "Box Err None Ok Option Result Self Some String Vec as async await bool break char const continue crate dyn else enum extern f32 f64 false fn for i32 i64 if impl in let loop match mod move mut pub ref return self static str struct super trait true type u32 u64 u8 unsafe use usize where while",
  swift: "Any Self actor as associatedtype async await break case catch class continue default defer deinit do else enum extension fallthrough false fileprivate final for func guard if import in init inout internal is lazy let mutating nil open operator override private protocol public repeat rethrows return self static struct subscript super switch throw throws true try typealias var weak where while",
  shell: "alias break case cd continue declare do done echo elif else esac eval exec exit export fi for function if in local printf read readonly return select set shift source sudo test then time trap unset until while",
  ruby: "BEGIN END alias and attr_accessor attr_reader begin break case class def defined do else elsif end ensure extend false for if in include module next nil not or private protected public puts raise redo require rescue retry return self super then true undef unless until when while yield",
  php: "abstract and array as break callable case catch class clone const continue declare default do echo else elseif empty enum extends false final finally fn for foreach function global if implements include instanceof interface isset list match namespace new null or print private protected public readonly require return static switch this throw trait true try unset use var while xor yield",
  sql: "add all alter and as asc begin between by case cast check column commit constraint create cross database default delete desc distinct drop else end except exists explain false foreign from full function group having if in index inner insert intersect into is join key left like limit not null on or order outer over partition primary references replace returning right rollback select set table then transaction trigger true truncate union unique update using values view when where with",
  lua: "and break do else elseif end false for function goto if in local nil not or repeat return self then true until while",
  haskell: "as case class data default deriving do else family forall foreign hiding if import in infix infixl infixr instance let module newtype of qualified then type where",
  r: "FALSE Inf NA NULL NaN TRUE break else for function if in library next repeat require return while",
  julia: "abstract baremodule begin break catch const continue do else elseif end export false finally for function global if import in let local macro module mutable nothing primitive quote return struct true try type using where while",
  docker: "ADD ARG AS CMD COPY ENTRYPOINT ENV EXPOSE FROM HEALTHCHECK LABEL MAINTAINER ONBUILD RUN SHELL STOPSIGNAL USER VOLUME WORKDIR",
  make: "define else endef endif export ifdef ifeq ifndef ifneq include override unexport",
  literals: "true false null yes no on off nan inf none",
};

/** Each language: its comments, its strings, its keywords, and other names that blocks give it. */
const LANGUAGES = [
  ["slashes", "script", "script", "javascript js jsx mjs cjs typescript ts tsx svelte vue"],
  ["hash", "python", "python", "python py python3 pyi ipython pycon starlark bazel"],
  ["slashes", "strict", "c", "c h cpp c++ cc cxx hpp cuda cu objc objective-c metal glsl hlsl wgsl arduino"],
  ["slashes", "both", "java", "java kotlin kt kts scala csharp c# cs groovy gradle dart proto protobuf solidity"],
  ["slashes", "raw", "go", "go golang"],
  ["slashes", "strict", "rust", "rust rs zig"],
  ["slashes", "both", "swift", "swift"],
  ["hash", "both", "shell", "bash sh shell zsh fish console shellsession powershell ps1 pwsh"],
  ["hash", "both", "ruby", "ruby rb elixir ex exs crystal perl pl"],
  ["slashes", "both", "php", "php"],
  ["dashes", "sql", "sql", "sql postgres postgresql mysql sqlite plsql tsql", "fold"],
  ["dashes", "both", "lua", "lua"],
  ["dashes", "strict", "haskell", "haskell hs elm purescript"],
  ["hash", "both", "r", "r"],
  ["hash", "both", "julia", "julia jl"],
  ["hash", "both", "docker", "dockerfile docker"],
  ["hash", "both", "make", "makefile make cmake"],
  ["hash", "both", "literals", "yaml yml toml conf nginx hcl terraform tf graphql gql"],
  ["semicolon", "both", "literals", "ini cfg properties"],
  ["slashes", "both", "literals", "json jsonc json5 jsonl"],
  ["block", "both", "literals", "css scss less"],
  ["markup", "both", "literals", "html xml svg xhtml markup"],
  ["percent", "both", "literals", "tex latex"],
];

const made = new Map();

/** A block's language by the name that it gives; null for none that is known. */
export function languageOf(name) {
  const wanted = name.toLowerCase();
  const row = LANGUAGES.find(([, , , names]) => names.split(" ").includes(wanted));
  if (!row) return null;
  if (!made.has(row)) made.set(row, compiled(row));
  return made.get(row);
}

function compiled([comment, string, words, , fold]) {
  const tag = comment === "markup" ? String.raw`(?<keyword><\/?[\w:-]+|\/?>)|` : "";
  const key = words === "literals" && !tag ? String.raw`(?<name>"(?:[^"\\\n]|\\[^])*"(?=:)|[\p{L}_][\w.-]*(?= ?[:=]))|` : "";
  const call = key || tag ? "" : String.raw`(?<call>[\p{L}_$][\p{L}\p{N}_$]*(?=\())|`;
  const source = `(?<comment>${COMMENT[comment]})|${key}${tag}(?<string>${STRING[string]})|(?<number>${NUMBER})|${call}(?<word>${WORD})|[^]`;
  return { pattern: new RegExp(source, "yu"), keywords: new Set(WORDS[words].split(" ")), fold: fold === "fold" };
}
