// Package ndp sends router advertisements (RFC 4861 section 6.2) that tell
// machines to use DHCPv6.
//
// iPXE does no DHCPv6 at all before it has seen an advertisement with the M or
// O flag, and UEFI waits 11 to 20 s for one before it goes on without (both
// measured). Where no router of the network sends them, provisiond can: with a
// router lifetime of 0, so that nobody takes it for a default router.
package ndp
