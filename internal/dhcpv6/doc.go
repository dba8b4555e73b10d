// Package dhcpv6 gives booting machines their address and the URL of what they
// boot (RFC 8415, RFC 5970), directly on a link or behind relays.
//
// One pure function decides an answer: handle takes a packet and returns one,
// or the reason why there is none. It asks the inventory for everything that is
// remembered and [inventory.PlanBoot] for the one boot decision. Around it,
// [Server.Serve] moves packets between a socket and a bounded set of workers.
//
// What firmware accepts was measured against EDK2 and iPXE; the comments name
// the failure each rule avoids.
package dhcpv6
