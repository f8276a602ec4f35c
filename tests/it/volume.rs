//! Volumes from publish to unpublish, on a manual clock, scripted stores and mounts in memory: the unchanged `volume/` and
//! `source/`. `again`: the same call again, and another one; `restore`: what a restart finds; `shortcut`: the common first publish; `denied`: access that is taken away; `stores`: what kinds of store do; `life`: calls; `trouble`: what fails; `time`: suspends and
//! clocks that are set; `random`: all of it in any order; `real`: on real mounts, clock and threads.

mod again;
mod denied;
mod life;
mod random;
mod real;
mod restore;
mod shortcut;
mod stores;
mod time;
mod trail;
mod trouble;
