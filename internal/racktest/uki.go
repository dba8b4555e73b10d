package racktest

import (
	"bytes"
	"debug/pe"
	"strings"
)

// section is a section of an image as firmware has it in memory, nil if there is none.
func section(image *pe.File, name string) []byte {
	s := image.Section(name)
	if s == nil {
		return nil
	}
	data, err := s.Data()
	if err != nil || uint32(len(data)) < min(s.VirtualSize, s.Size) {
		return nil
	}
	return data[:min(s.VirtualSize, s.Size)]
}

// uki starts what firmware loaded, if that is a UKI: a stub that starts the kernel in its
// section .linux with the line in .cmdline, which a NUL ends. Firmware that boots over the
// network hands over no line of its own (systemd-stub(7); measured with OVMF).
func (b *boot) uki(l *loader) (line *commandLine, ok bool, err error) {
	image, err := pe.NewFile(bytes.NewReader(l.bytes))
	if err != nil {
		return nil, false, nil // a loader, as Loader makes it
	}
	kernel, initrd := section(image, ".linux"), section(image, ".initrd")
	switch {
	case image.Section(".linux") == nil:
		return nil, false, nil
	case len(kernel) == 0:
		return nil, true, fault("", "systemd-stub: .linux cannot be read")
	case len(initrd) == 0:
		return nil, true, fault("", "kernel panic: no initramfs: the UKI has no section .initrd")
	}
	text, _, _ := strings.Cut(string(section(image, ".cmdline")), "\x00")
	b.loaded(func(s *Loaded) {
		s.KernelURL, s.Kernel = l.url.String(), hash(kernel)
		s.InitramfsURL, s.Initramfs = l.url.String(), hash(initrd)
		s.CommandLine = text
	})
	if err := b.step(StepKernel, "the UKI of %d bytes starts", len(l.bytes)); err != nil {
		return nil, true, err
	}
	b.timeline.add(StepInitramfs, "kernel starts: %s", text)
	return parseCommandLine(text), true, nil
}
