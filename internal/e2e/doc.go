// Package e2e boots virtual machines with real UEFI firmware, real iPXE and a
// real kernel against the real daemon, over IPv6 only: a control plane by PXE,
// a worker by HTTP, the installed control plane once more, and a machine that
// nobody registered; two that load their own UKIs at once; one with Secure Boot on,
// which is sent to UKIs that were tampered with first; and one of another architecture.
// Only Talos itself is replaced, by the guest in this folder.
//
// Its tests are behind the build tag e2e. They need root, QEMU and some
// minutes, and fail, naming what is missing, where they cannot run.
package e2e
