package images

import (
	"errors"
	"fmt"
	"os"

	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/uki"
)

// maxTemplates is how many templates are remembered, some kB each: more than there are
// images. To make one anew takes longer than firmware may wait.
const maxTemplates = 256

// UKI returns what machines' own UKIs are made of: of the image's UKI, or of its stub,
// kernel and initramfs. The first time all of these are read; callers that ask at the same
// time share that. An image that has neither gives [inventory.ErrNotFound], and files that
// are none a [*inventory.FieldError].
func (s *Store) UKI(i *inventory.Image) (*uki.Template, error) {
	if !i.HasUKI() {
		return nil, fmt.Errorf("image %s has neither a UKI nor a stub: %w", i.ID(), inventory.ErrNotFound)
	}
	key := string(i.Arch)
	for _, b := range i.UKIFiles() {
		key += "/" + b.SHA256
	}
	s.mu.Lock()
	t := s.templates[key]
	s.mu.Unlock()
	if t != nil {
		return t, nil
	}
	made, err, _ := s.laying.Do(key, func() (any, error) { return s.layOut(i) })
	if err != nil {
		return nil, fmt.Errorf("making a UKI of image %s: %w", i.ID(), err)
	}
	t = made.(*uki.Template)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.templates) >= maxTemplates {
		clear(s.templates)
	}
	s.templates[key] = t
	return t, nil
}

func (s *Store) layOut(i *inventory.Image) (*uki.Template, error) {
	blobs := i.UKIFiles()
	sources := make([]uki.Source, len(blobs))
	for n, b := range blobs {
		f, err := s.Open(b)
		if err != nil {
			return nil, err
		}
		defer func() { _ = f.Close() }() // read only
		sources[n] = uki.Source{R: f, Size: b.Size}
	}
	field := "uki"
	if len(sources) > 1 {
		field = "stub"
	}
	base, err := uki.Parse(sources[0].R, sources[0].Size)
	if err != nil {
		return nil, fileError(field, err)
	}
	if base.Arch() != string(i.Arch) {
		return nil, fileError(field, fmt.Errorf("it is for %s", base.Arch()))
	}
	if len(sources) == 1 {
		t, err := uki.FromUKI(base)
		return t, fileError(field, err)
	}
	t, err := uki.Assemble(base, sources[1], sources[2], "ID=talos\nPRETTY_NAME=\"Talos ("+i.Version+")\"\nVERSION_ID="+i.Version+"\n", "")
	return t, fileError(field, err)
}

// CheckUKI refuses an image whose UKI, stub or signed UKI is none, or is for another
// architecture. The error is a [*inventory.FieldError] that names the file, and the section
// that is wrong with it.
func (s *Store) CheckUKI(i *inventory.Image) error {
	var errs []error
	if i.HasUKI() {
		_, err := s.UKI(i)
		errs = append(errs, err)
	}
	if i.Signed.SHA256 != "" {
		errs = append(errs, s.checkSigned(i))
	}
	return errors.Join(errs...)
}

func (s *Store) checkSigned(i *inventory.Image) error {
	f, err := s.Open(i.Signed)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // read only
	u, err := uki.Parse(f, i.Signed.Size)
	if err == nil {
		err = u.CheckUKI()
	}
	switch {
	case err != nil:
	case u.Arch() != string(i.Arch):
		err = fmt.Errorf("it is for %s", u.Arch())
	default:
		if _, size := u.Certificates(); size == 0 {
			err = errors.New("nobody signed it")
		}
	}
	return fileError("signed", err)
}

// fileError is what is wrong with a file of an image.
func fileError(field string, err error) error {
	if err == nil {
		return nil
	}
	fix := map[string]string{
		"uki": "the Image Factory's metal-ARCH-uki.efi", "signed": "the Image Factory's metal-ARCH-secureboot-uki.efi", "stub": "linuxx64.efi.stub or linuxaa64.efi.stub of systemd",
	}[field]
	if bad, ok := errors.AsType[*uki.Error](err); ok {
		return &inventory.FieldError{Field: field, Problem: bad.Error(), Fix: fix}
	}
	if errors.Is(err, os.ErrClosed) || errors.Is(err, ErrCorrupt) {
		return err
	}
	return &inventory.FieldError{Field: field, Problem: err.Error(), Fix: fix}
}
