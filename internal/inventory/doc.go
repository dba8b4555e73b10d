// Package inventory is provisiond's domain: what was registered, what was
// seen, and what follows from it.
//
// Three pure functions hold every rule. [Apply] folds an [Event] into facts,
// [PhaseOf] says what an operator sees, and [PlanBoot] is the one boot decision
// that DHCPv6, TFTP, the boot script and the config URL all ask. [Keeper] is
// the only writer: it loads, applies and commits, one compare-and-swap at a
// time, through the [Store] seam. The package imports the standard library
// only; everything that speaks a protocol is an adapter around it.
package inventory
