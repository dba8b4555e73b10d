package httpconfig

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"time"
)

// piece is how much is sent before the deadline of a connection is moved on: at
// 30 s for 512 KB, a peer may be as slow as 140 kbit/s, so that 1,000 of them may share
// a link of 1 Gbit/s, not all alike. Larger pieces cost no less.
const piece = 512 << 10

// transfer is a ResponseWriter for large files. It moves the connection's
// deadline on with every piece, so that a slow peer gets all of a file and one
// that stopped reading does not keep a connection; and it counts what was sent.
// Its ReadFrom passes files on as they are, for sendfile.
type transfer struct {
	http.ResponseWriter
	stall  time.Duration
	status int
	sent   atomic.Int64 // read by others while it goes on
	from   atomic.Int64 // where in the file it begins: that of a range
}

// pieces is a file that is made of others, such as a UKI: what follows in it, at most so
// many bytes and how many they are, in a reader that the kernel can be given.
type pieces interface {
	Next(limit int64) (io.Reader, int64, error)
}

// WriteHeader implements http.ResponseWriter.
func (t *transfer) WriteHeader(status int) {
	t.status = status
	var from int64
	if _, err := fmt.Sscanf(t.Header().Get("Content-Range"), "bytes %d-", &from); err == nil {
		t.from.Store(from)
	}
	t.ResponseWriter.WriteHeader(status)
}

func (t *transfer) Write(p []byte) (int, error) {
	t.moveOn()
	n, err := t.ResponseWriter.Write(p)
	t.sent.Add(int64(n))
	return n, err
}

// ReadFrom implements io.ReaderFrom piece by piece.
func (t *transfer) ReadFrom(src io.Reader) (total int64, err error) {
	// The kernel is given the file itself only if exactly one LimitedReader is
	// around it (net.sendFile), so the one that http.ServeContent made is opened.
	left, bounded := int64(-1), false
	if limited, ok := src.(*io.LimitedReader); ok {
		src, left, bounded = limited.R, limited.N, true
	}
	next := func(limit int64) (io.Reader, int64, error) { return &io.LimitedReader{R: src, N: limit}, limit, nil }
	if p, ok := src.(pieces); ok {
		next = p.Next
	}
	for !bounded || left > 0 {
		want := int64(piece)
		if bounded {
			want = min(want, left)
		}
		t.moveOn()
		part, size, err := next(want)
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
		n, err := io.Copy(t.ResponseWriter, part) // the ResponseWriter's ReadFrom, if it has one
		total += n
		t.sent.Add(n)
		left -= n
		if err != nil || n < size {
			return total, err
		}
	}
	return total, nil
}

// Unwrap is for http.ResponseController.
func (t *transfer) Unwrap() http.ResponseWriter { return t.ResponseWriter }

func (t *transfer) moveOn() {
	// A ResponseWriter without deadlines is a test's.
	_ = http.NewResponseController(t.ResponseWriter).SetWriteDeadline(time.Now().Add(t.stall))
}

// whole reports whether all of a file of this size was sent: no part of it, no
// HEAD and no 304.
func (t *transfer) whole(size int64) bool { return t.status == http.StatusOK && t.sent.Load() == size }
