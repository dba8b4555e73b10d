// Package seed makes what a machine reads its config from where it was not booted by
// us: the files of a NoCloud server, and volumes that Talos finds beside its boot
// medium. It is pure: bytes made of a description.
package seed
