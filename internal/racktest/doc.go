// Package racktest simulates bare metal machines that speak the real wire
// protocols in the order in which firmware, iPXE and Talos speak them.
//
// A [Machine] boots as an OVMF machine does: DHCPv6, a loader over TFTP or
// HTTP, iPXE with its script, kernel and initramfs, the Talos machine config,
// an install, and the Talos API. A [Node] is the Talos part alone. A [Rack] is
// several machines with one network. The DHCPv6, TFTP, HTTP and gRPC traffic is
// real; only the hardware and what needs no network is made up.
//
// It shares no code with the servers it is pointed at, so that the two check
// each other. What it accepts and refuses is what was measured: EDK2 stable
// 2022-11, iPXE of 2019 and 2026, and Talos 1.13.6.
package racktest
