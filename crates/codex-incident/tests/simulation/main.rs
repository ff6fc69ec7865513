//! Simulations of the incident engine: with a fake clock, random numbers of a seed, and everybody's part played.

mod random;
mod schedules;
mod world;
