//! Volumes from publish to unpublish, on a manual clock, scripted stores and mounts in memory: the unchanged `volume/` and
//! `source/`. `stores`: what kinds of store do; `life`: calls; `trouble`: what fails; `time`: suspends and
//! clocks that are set; `random`: all of it in any order; `real`: on real mounts, clock and threads.

mod life;
mod random;
mod real;
mod stores;
mod time;
mod trouble;
