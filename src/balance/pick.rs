//! Floor 2: chooses the endpoint of one request.

use crate::balance::cost::{Formula, Moment};
use crate::balance::endpoint::Cell;
use crate::stdx::rng::Rng;
use std::sync::Arc;

/// The cheaper of two random usable endpoints that `avoid` does not name; of all usable ones when it names them
/// all. `None` when none is usable.
pub fn pick(
    cells: &[Arc<Cell>],
    formula: &Formula,
    now: Moment,
    rng: &Rng,
    avoid: impl Fn(u32) -> bool,
) -> Option<usize> {
    let first = draw(cells, rng, |cell| cell.is_open() && !avoid(cell.id()));
    let Some(first) = first else { return draw(cells, rng, Cell::is_open) };
    let second =
        draw(cells, rng, |cell| cell.is_open() && !avoid(cell.id()) && cell.id() != cells[first].id());
    let Some(second) = second else { return Some(first) };
    let cost = |index: usize| formula.score(&cells[index].view(now), now);
    Some(if cost(second) < cost(first) { second } else { first })
}

fn draw(cells: &[Arc<Cell>], rng: &Rng, usable: impl Fn(&Cell) -> bool) -> Option<usize> {
    let len = u32::try_from(cells.len()).unwrap_or(u32::MAX);
    for _ in 0..8 {
        let index = rng.below(len) as usize;
        if cells.get(index).is_some_and(|cell| usable(cell)) {
            return Some(index);
        }
    }
    let open: Vec<usize> = (0..cells.len()).filter(|index| usable(&cells[*index])).collect();
    open.get(rng.below(open.len() as u32) as usize).copied()
}
