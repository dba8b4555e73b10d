package uki

import "io"

// Reader reads a UKI from its pieces. It is for one goroutine.
type Reader struct{}

// Read implements io.Reader.
func (r *Reader) Read(p []byte) (int, error) { return 0, io.EOF }

// Seek implements io.Seeker.
func (r *Reader) Seek(offset int64, whence int) (int64, error) { return 0, nil }

// Next returns a reader of what follows, at most max bytes and at least one,
// and how many they are; the Reader goes on behind them. If they are of a file,
// it is an *io.LimitedReader around the *os.File, which is what net takes for
// sendfile. It must be read to its end, or Seek be called, before the next use
// of the Reader. At the end of the UKI the error is io.EOF.
func (r *Reader) Next(max int64) (io.Reader, int64, error) { return nil, 0, io.EOF }

// Close closes the files.
func (r *Reader) Close() error { return nil }
