package uki

import "os"

// Signer signs UKIs for Secure Boot.
type Signer interface {
	// Size is how many bytes Sign returns, for every digest.
	Size() int
	// Sign returns an Authenticode signature (PKCS #7, DER) of an image with
	// this digest: the same bytes whenever it is asked.
	Sign(digest [32]byte) ([]byte, error)
}

// Piece is a part of a UKI: bytes of its own, or a range of a file.
type Piece struct {
	Bytes  []byte // nil: a range of a file. Not to be changed
	File   int    // which file: 0 is the UKI or the stub, 1 the kernel, 2 the initramfs
	Offset int64  // where the range begins in the file
	Size   int64  // bytes of the piece, which are all of Bytes or of the range
}

// Image is the UKI of one machine in one boot: a few kB. It does not change,
// and may be used by many at once.
type Image struct{}

// Make makes the UKI with this kernel line, signed unless signer is nil. It
// reads no file, and of the same line and signer it makes the same bytes. An
// *Error names .cmdline if the line is longer than [MaxLine] or has bytes that
// the kernel would not take as they are: control characters, and what is not UTF-8.
func (t *Template) Make(line string, signer Signer) (*Image, error) { return &Image{}, nil }

// Size is how many bytes the UKI has.
func (m *Image) Size() int64 { return 0 }

// Pieces are the parts of the UKI, in their order.
func (m *Image) Pieces() []Piece { return nil }

// Tag is a hash in hexadecimal that is different for every other UKI: an
// ETag, without its quotes. It is of what the UKI is made of, computed without
// reading the files.
func (m *Image) Tag() string { return "" }

// Digest is the Authenticode digest (SHA-256), which is what was signed.
func (m *Image) Digest() [32]byte { return [32]byte{} }

// Open returns a reader of the UKI. files are those of its pieces, opened for
// this reader alone, which moves in them and closes them.
func (m *Image) Open(files ...*os.File) (*Reader, error) { return &Reader{}, nil }
