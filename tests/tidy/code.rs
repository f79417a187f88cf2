//! Rust text without its comments and literals, so that rules see code only.

/// The same text with every comment, string and character literal blanked; line numbers stay.
pub(crate) fn code(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = literal_end(&chars, at);
        if end == at {
            out.push(chars[at]);
            at += 1;
        } else {
            out.extend(chars[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    out
}

/// Where the comment or literal that begins here ends; here, when none begins.
fn literal_end(chars: &[char], at: usize) -> usize {
    let next = |offset: usize| chars.get(at + offset).copied();
    let is_new_word = at == 0 || !is_word(chars[at - 1]);
    match chars[at] {
        '/' if next(1) == Some('/') => find(chars, at, |c| c == '\n').unwrap_or(chars.len()),
        '/' if next(1) == Some('*') => block_comment_end(chars, at),
        '"' => string_end(chars, at + 1),
        'r' if is_new_word && matches!(next(1), Some('"' | '#')) => raw_string_end(chars, at + 1).unwrap_or(at),
        'b' if is_new_word && next(1) == Some('r') => raw_string_end(chars, at + 2).unwrap_or(at),
        '\'' if next(1) == Some('\\') => find(chars, at + 3, |c| c == '\'').map_or(chars.len(), |end| end + 1),
        // Otherwise a lifetime.
        '\'' if next(2) == Some('\'') => at + 3,
        _ => at,
    }
}

pub(crate) fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn find(chars: &[char], from: usize, wanted: impl Fn(char) -> bool) -> Option<usize> {
    (from..chars.len()).find(|at| wanted(chars[*at]))
}

fn string_end(chars: &[char], mut at: usize) -> usize {
    while at < chars.len() && chars[at] != '"' {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(chars.len())
}

fn raw_string_end(chars: &[char], from: usize) -> Option<usize> {
    let open = find(chars, from, |c| c != '#')?;
    if chars[open] != '"' {
        return None;
    }
    let hashes = open - from;
    let mut at = open + 1;
    loop {
        let quote = find(chars, at, |c| c == '"')?;
        if chars[quote + 1..].iter().take_while(|c| **c == '#').count() >= hashes {
            return Some(quote + 1 + hashes);
        }
        at = quote + 1;
    }
}

fn block_comment_end(chars: &[char], start: usize) -> usize {
    let (mut depth, mut at) = (0_usize, start);
    while at < chars.len() {
        match (chars[at], chars.get(at + 1)) {
            ('/', Some('*')) => {
                depth += 1;
                at += 2;
            }
            ('*', Some('/')) => {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    return at;
                }
            }
            _ => at += 1,
        }
    }
    at
}

/// The lines (from 1) in which `wanted` stands as a path or word of its own: not the end of a longer one.
pub(crate) fn lines_with(code: &str, wanted: &str) -> Vec<usize> {
    let mut lines: Vec<usize> = code
        .match_indices(wanted)
        .filter(|(at, _)| !code[..*at].ends_with(|c: char| is_word(c) || c == ':'))
        .map(|(at, _)| code[..at].matches('\n').count() + 1)
        .collect();
    lines.dedup();
    lines
}

#[test]
fn comments_and_literals_are_blanked_and_nothing_else() {
    for (text, expected) in [
        ("a // b\nc", "a     \nc"),
        ("a /* b /* c */ d */ e", "a                   e"),
        (r#"f("x\"y", z)"#, "f(      , z)"),
        ("f(r#\"a\"b\"#, z)", "f(        , z)"),
        ("f(br\"a\\\", z)", "f(      , z)"),
        (r"f('\'', 'a', b'\n') as &'a T", "f(    ,    , b    ) as &'a T"),
        ("r#type + for", "r#type + for"),
        ("\"a\nb\" c", "  \n   c"),
        ("\"open", "     "),
    ] {
        assert_eq!(code(text), expected, "{text}");
    }
    assert_eq!(lines_with("x\ny::x\nmax x", "x"), [1, 3]);
}
