mod behaviour;
mod events;
mod model;
mod probe;
mod threads;
