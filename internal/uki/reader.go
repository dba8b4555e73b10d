package uki

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
)

// Reader reads a UKI from its pieces. It is for one goroutine.
type Reader struct {
	image *Image
	files []*os.File
	at    int64
}

// Open returns a reader of the UKI. files are those of its pieces, opened for
// this reader alone, which moves in them and closes them. If it fails, they
// stay the caller's.
func (m *Image) Open(files ...*os.File) (*Reader, error) {
	if len(files) != len(m.sources) {
		return nil, fmt.Errorf("the UKI is made of %d files, and %d are given", len(m.sources), len(files))
	}
	for i, f := range files {
		info, err := f.Stat()
		if err != nil {
			return nil, err
		}
		if info.Size() != m.sources[i].Size {
			return nil, fmt.Errorf("%s has %d bytes, and had %d when the UKI was laid out", f.Name(), info.Size(), m.sources[i].Size)
		}
	}
	return &Reader{image: m, files: files}, nil
}

// Read implements io.Reader.
func (r *Reader) Read(p []byte) (n int, err error) {
	if len(p) == 0 {
		return 0, nil
	}
	piece, from := r.piece()
	if piece == nil {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), piece.Size-from)]
	if piece.Bytes != nil {
		n = copy(p, piece.Bytes[from:])
	} else if n, err = r.files[piece.File].ReadAt(p, piece.Offset+from); n == len(p) {
		err = nil
	} else if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF // the file was cut
	}
	r.at += int64(n)
	return n, err
}

// Seek implements io.Seeker.
func (r *Reader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += r.at
	case io.SeekEnd:
		offset += r.image.size
	}
	if offset < 0 {
		return 0, fmt.Errorf("seeking to %d, before the beginning of the UKI", offset)
	}
	r.at = offset
	return offset, nil
}

// Next returns a reader of what follows, at most max bytes and at least one,
// and how many they are; the Reader goes on behind them. If they are of a file,
// it is an *io.LimitedReader around the *os.File, which is what net takes for
// sendfile. It is to be read before the next use of the Reader, which knows not
// how far it was. At the end of the UKI the error is io.EOF.
func (r *Reader) Next(max int64) (io.Reader, int64, error) {
	piece, from := r.piece()
	if piece == nil || max <= 0 {
		return nil, 0, io.EOF
	}
	n := min(max, piece.Size-from)
	r.at += n
	if piece.Bytes != nil {
		return bytes.NewReader(piece.Bytes[from : from+n]), n, nil
	}
	f := r.files[piece.File]
	if _, err := f.Seek(piece.Offset+from, io.SeekStart); err != nil {
		return nil, 0, err
	}
	return &io.LimitedReader{R: f, N: n}, n, nil
}

// piece is the one that has the next byte, and how far into it that is; nil at
// the end. There are few.
func (r *Reader) piece() (*Piece, int64) {
	at := r.at
	for i := range r.image.pieces {
		p := &r.image.pieces[i]
		if at < p.Size {
			return p, at
		}
		at -= p.Size
	}
	return nil, 0
}

// Close closes the files.
func (r *Reader) Close() error {
	var all []error
	for _, f := range r.files {
		all = append(all, f.Close())
	}
	return errors.Join(all...)
}
