//! What comes from outside has a limit, and each limit a test at it and one step beyond. docs/input-limits.md is the list.

mod fields;
mod http;
mod inventory;
mod names;
mod texts;
