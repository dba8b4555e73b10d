// Package model is nothing but a test: the lifecycle of a rack, machines, daemon,
// network, Talos and operator, driven at random through crashes of all of them, and
// checked after every step for what must never happen.
package model
