mod behaviour;
mod events;
mod evidence;
mod model;
mod probe;
mod threads;
