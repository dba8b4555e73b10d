// Package e2e boots virtual machines with real UEFI firmware, real iPXE and a
// real kernel against the real daemon, over IPv6 only: a control plane by PXE,
// a worker by HTTP, the installed control plane once more, and a machine that
// nobody registered. Only Talos itself is replaced, by the guest in this folder.
//
// Its one test is behind the build tag e2e. It needs root, QEMU and a few
// minutes, and fails, naming what is missing, where it cannot run.
package e2e
