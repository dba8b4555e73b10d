package uki

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
)

// Signer signs UKIs for Secure Boot.
type Signer interface {
	// Size is how many bytes Sign returns, for every digest.
	Size() int
	// Sign returns an Authenticode signature (PKCS #7, DER) of an image with
	// this digest: the same bytes whenever it is asked.
	Sign(digest [sha256.Size]byte) ([]byte, error)
}

// Piece is a part of a UKI: bytes of its own, or a range of a file.
type Piece struct {
	Bytes  []byte // nil: a range of a file. Not to be changed
	File   int    // which file: 0 is the UKI or the stub, 1 the kernel, 2 the initramfs
	Offset int64  // where the range begins in the file
	Size   int64  // bytes of the piece: of all of Bytes, or of the range
}

// Image is the UKI of one machine in one boot: a few kB. It does not change,
// and may be used by many at once.
type Image struct {
	sources []Source
	pieces  []Piece
	size    int64
	tag     string
	digest  [sha256.Size]byte
}

// Make makes the UKI with this kernel line, signed unless signer is nil. It
// reads no file, and of the same line and signer it makes the same bytes. An
// *[Error] names .cmdline if the line is longer than [MaxLine] or has other than
// printable ASCII: systemd-stub and kernel would not pass it on as it is.
func (t *Template) Make(line string, signer Signer) (*Image, error) {
	if err := checkLine(line); err != nil {
		return nil, err
	}
	tail := make([]byte, t.Size(signer)-t.lineAt)
	copy(tail, line)
	h, err := t.digest.Clone()
	if err != nil {
		return nil, err
	}
	h.Write(tail[:lineRoom])
	m := &Image{sources: t.sources, size: t.Size(signer), digest: [sha256.Size]byte(h.Sum(nil))}
	head := t.head
	if signer != nil {
		head = append([]byte(nil), t.head...)
		binary.LittleEndian.PutUint32(head[t.table:], uint32(t.lineAt+lineRoom))
		binary.LittleEndian.PutUint32(head[t.table+4:], uint32(len(tail)-lineRoom))
		signature, err := signer.Sign(m.digest)
		if err != nil {
			return nil, fmt.Errorf("signing the UKI: %w", err)
		}
		if len(signature) != signer.Size() {
			return nil, fmt.Errorf("signing the UKI: the signature has %d bytes, and %d were promised", len(signature), signer.Size())
		}
		writeTable(tail[lineRoom:], signature)
	}
	m.pieces = make([]Piece, 0, len(t.pieces)+2)
	m.pieces = append(m.pieces, Piece{Bytes: head, Size: int64(len(head))})
	m.pieces = append(m.pieces, t.pieces...)
	m.pieces = append(m.pieces, Piece{Bytes: tail, Size: int64(len(tail))})
	tag := sha256.New()
	tag.Write(t.id[:])
	tag.Write(tail)
	m.tag = hex.EncodeToString(tag.Sum(nil))
	return m, nil
}

func checkLine(line string) error {
	if len(line) > MaxLine {
		return bad(sectionLine, "the kernel line has %d bytes: want at most %d", len(line), MaxLine)
	}
	for i := range len(line) {
		if line[i] < ' ' || line[i] > '~' {
			return bad(sectionLine, "the kernel line has %q at byte %d: want printable ASCII", line[i:i+1], i)
		}
	}
	return nil
}

// Size is how many bytes the UKI has.
func (m *Image) Size() int64 { return m.size }

// Pieces are the parts of the UKI, in their order. They are not to be changed.
func (m *Image) Pieces() []Piece { return m.pieces }

// Tag is a hash in hexadecimal that is another for every other UKI: an ETag,
// without its quotes. It is of what the UKI is made of, computed without reading
// the files.
func (m *Image) Tag() string { return m.tag }

// Digest is the Authenticode digest, which is what was signed.
func (m *Image) Digest() [sha256.Size]byte { return m.digest }

// certificateHead is the size of a WIN_CERTIFICATE without what it holds.
const certificateHead = 8

// tableSize is how many bytes a certificate table with one signature has.
func tableSize(signature int) int64 { return int64(up(uint64(certificateHead+signature), 8)) }

// writeTable writes a WIN_CERTIFICATE of revision 2.0 that holds a PKCS #7
// signature ("PE Format", section "The Attribute Certificate Table").
func writeTable(to, signature []byte) {
	binary.LittleEndian.PutUint32(to, uint32(certificateHead+len(signature)))
	binary.LittleEndian.PutUint16(to[4:], 0x0200)
	binary.LittleEndian.PutUint16(to[6:], 0x0002)
	copy(to[certificateHead:], signature)
}
