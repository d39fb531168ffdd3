//! Floor 0: what changed between two texts, line by line, for people to read.

/// The longest middle part of a text, in lines, that is compared line by line. What is longer is shown as removed and
/// added whole: the comparison takes time and memory by the square of it (a megabyte at this size).
const COMPARED_MAX: usize = 512;
/// How many unchanged lines are shown around a change: as `diff -u`.
const CONTEXT: usize = 3;

/// What becomes of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// It stays.
    Keep,
    /// It is no longer there.
    Remove,
    /// It is new.
    Add,
    /// Unchanged lines that are not shown.
    Skip,
}

/// One line of a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line<'a> {
    /// What becomes of it.
    pub op: Op,
    /// The line; empty for [`Op::Skip`].
    pub text: &'a str,
}

/// The difference of two texts: the changed lines with some of their neighbours. Empty when they are equal.
pub fn lines<'a>(before: &'a str, after: &'a str) -> Vec<Line<'a>> {
    let (old, new): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    let head = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
    let (old_rest, new_rest) = (&old[head..], &new[head..]);
    let tail = old_rest.iter().rev().zip(new_rest.iter().rev()).take_while(|(a, b)| a == b).count();
    let (gone, come) = (&old_rest[..old_rest.len() - tail], &new_rest[..new_rest.len() - tail]);
    if gone.is_empty() && come.is_empty() {
        return Vec::new();
    }
    let line = |op: Op| move |text: &&'a str| Line { op, text };
    let mut all: Vec<Line<'a>> = old[..head].iter().map(line(Op::Keep)).collect();
    if gone.len().max(come.len()) > COMPARED_MAX {
        all.extend(gone.iter().map(line(Op::Remove)));
        all.extend(come.iter().map(line(Op::Add)));
    } else {
        all.extend(compared(gone, come));
    }
    all.extend(old_rest[old_rest.len() - tail..].iter().map(line(Op::Keep)));
    folded(&all)
}

/// By the longest common subsequence (Hunt and McIlroy 1976, without the haste).
fn compared<'a>(old: &[&'a str], new: &[&'a str]) -> Vec<Line<'a>> {
    let width = new.len() + 1;
    // How much of the texts from here on is common.
    let mut common = vec![0_u16; (old.len() + 1) * width];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            common[i * width + j] = if old[i] == new[j] {
                common[(i + 1) * width + j + 1] + 1
            } else {
                common[(i + 1) * width + j].max(common[i * width + j + 1])
            };
        }
    }
    let (mut i, mut j, mut lines) = (0, 0, Vec::new());
    while i < old.len() || j < new.len() {
        let (op, text) = if i < old.len() && j < new.len() && old[i] == new[j] {
            (Op::Keep, old[i])
        } else if j >= new.len() || i < old.len() && common[(i + 1) * width + j] >= common[i * width + j + 1]
        {
            (Op::Remove, old[i])
        } else {
            (Op::Add, new[j])
        };
        lines.push(Line { op, text });
        i += usize::from(op != Op::Add);
        j += usize::from(op != Op::Remove);
    }
    lines
}

/// Leaves out what stays and is far from every change.
fn folded<'a>(all: &[Line<'a>]) -> Vec<Line<'a>> {
    let mut near = vec![false; all.len()];
    for (at, _) in all.iter().enumerate().filter(|(_, line)| line.op != Op::Keep) {
        let end = (at + CONTEXT + 1).min(all.len());
        near[at.saturating_sub(CONTEXT)..end].fill(true);
    }
    let mut shown = Vec::new();
    for (line, near) in all.iter().zip(near) {
        let skips = shown.last().is_some_and(|last: &Line<'_>| last.op == Op::Skip);
        match near {
            true => shown.push(*line),
            false if !skips => shown.push(Line { op: Op::Skip, text: "" }),
            false => {}
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(before: &str, after: &str, expected: &[&str]) {
        let told = lines(before, after);
        let told = told.iter().map(|line| match line.op {
            Op::Keep => format!(" {}", line.text),
            Op::Remove => format!("-{}", line.text),
            Op::Add => format!("+{}", line.text),
            Op::Skip => "…".to_owned(),
        });
        assert_eq!(told.collect::<Vec<_>>(), expected, "{before:?} {after:?}");
    }

    #[test]
    fn changed_lines_show_with_their_neighbours() {
        check("a\nb\n", "a\nb\n", &[]);
        check("", "a\nb\n", &["+a", "+b"]);
        check("a\nb", "", &["-a", "-b"]);
        check("a\nb\nc", "a\nx\nc", &[" a", "-b", "+x", " c"]);
        check("a\nb\nc\nd", "b\nc\nx\nd", &["-a", " b", " c", "+x", " d"]);
        let long: Vec<String> = (0..20).map(|n| n.to_string()).collect();
        let other = long.join("\n").replace("10", "ten");
        check(&long.join("\n"), &other, &["…", " 7", " 8", " 9", "-10", "+ten", " 11", " 12", " 13", "…"]);
    }

    #[test]
    fn a_text_that_is_too_long_to_compare_is_replaced() {
        let old: String = (0..COMPARED_MAX + 1).map(|n| format!("a{n}\n")).collect();
        let new: String = (0..COMPARED_MAX + 1).map(|n| format!("b{n}\n")).collect();
        assert_eq!(lines(&old, &new).len(), 2 * COMPARED_MAX + 2);
    }

    proptest! {
        #[test]
        fn a_short_difference_makes_one_text_of_the_other(old in "[ab\n]{0,12}", new in "[ab\n]{0,12}") {
            let told = lines(&old, &new);
            let side = |gone: Op| {
                told.iter().filter(|line| line.op != gone).map(|line| line.text).collect::<Vec<_>>()
            };
            let skipped = told.iter().any(|line| line.op == Op::Skip);
            if !told.is_empty() && !skipped {
                prop_assert_eq!(side(Op::Add), old.lines().collect::<Vec<_>>());
                prop_assert_eq!(side(Op::Remove), new.lines().collect::<Vec<_>>());
            }
            prop_assert_eq!(told.is_empty(), old.lines().eq(new.lines()));
        }
    }
}
