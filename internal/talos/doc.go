// Package talos is all that speaks Talos: it renders and checks machine
// configs, writes the kernel line, signs what operators use to log in, talks to
// a machine's API and listens to its events.
//
// Talos' own Validate proves the shape of a config, not that a machine can come
// up with it. This package refuses, with the field named, what Talos takes and
// then fails on (check.go); every rule was seen with Talos 1.13.
//
// No other package of ours imports Talos' machinery or gRPC.
package talos
