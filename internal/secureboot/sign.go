package secureboot

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"
	"io"

	"github.com/foxboron/go-uefi/authenticode"

	"github.com/provisiond/provisiond/internal/uki"
)

// SignImage writes an image with a signature to w, such as iPXE. Signatures that
// it has stay: firmware takes an image for any of them.
func (s *Signer) SignImage(w io.Writer, r io.ReaderAt, size int64) error {
	f, err := uki.Parse(r, size) // which is stricter than the library
	if err != nil {
		return err
	}
	if at, table := f.Certificates(); table > 0 && at+table != size {
		return errors.New("the certificate table is not at the end of the file: remove its signatures first")
	}
	digest, err := f.Digest()
	if err != nil {
		return err
	}
	image, err := authenticode.Parse(r)
	if err != nil {
		return err
	}
	if theirs := image.Hash(crypto.SHA256); !bytes.Equal(theirs, digest[:]) {
		return errors.New("the sections of the image do not fill it, so that firmware may not agree on its digest")
	}
	signature, err := s.Sign(digest)
	if err != nil {
		return err
	}
	if err := image.AppendSignature(signature); err != nil {
		return fmt.Errorf("adding the signature: %w", err)
	}
	_, err = io.Copy(w, image.Open())
	return err
}
