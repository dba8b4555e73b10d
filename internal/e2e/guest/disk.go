//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
)

// state is what Talos keeps in its STATE and EPHEMERAL partitions.
type state struct {
	Config []byte `json:"config"`
	// Etcd is the identity of the etcd cluster whose data the disk holds.
	Etcd string `json:"etcd,omitempty"`

	disk string
}

// The state stands behind the installer's image: magic, length, SHA-256, JSON.
const (
	stateOffset = 200 << 20
	stateMagic  = "e2estate"
	maxState    = 1 << 20
)

// findState looks for an installed disk. It returns nil when there is none.
func findState() (*state, error) {
	disks, err := filepath.Glob("/dev/vd?")
	if err != nil {
		return nil, err
	}
	for _, disk := range disks {
		s, err := readState(disk)
		if err != nil {
			return nil, fmt.Errorf("state of %s: %w", disk, err)
		}
		if s != nil {
			return s, nil
		}
	}
	return nil, nil
}

func readState(disk string) (*state, error) {
	f, err := os.Open(disk)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // read only
	r := io.NewSectionReader(f, stateOffset, maxState)
	var head struct {
		Magic  [len(stateMagic)]byte
		Length uint32
		Sum    [sha256.Size]byte
	}
	if err := binary.Read(r, binary.LittleEndian, &head); err != nil {
		return nil, err
	}
	if string(head.Magic[:]) != stateMagic {
		return nil, nil
	}
	text := make([]byte, min(head.Length, maxState))
	if _, err := io.ReadFull(r, text); err != nil {
		return nil, err
	}
	if sha256.Sum256(text) != head.Sum {
		return nil, errors.New("its checksum is wrong")
	}
	s := &state{disk: disk}
	return s, json.Unmarshal(text, s)
}

// write stores s so that it survives a power cut.
func (s *state) write() error {
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	b.WriteString(stateMagic)
	sum := sha256.Sum256(text)
	b.Write(binary.LittleEndian.AppendUint32(nil, uint32(len(text))))
	b.Write(sum[:])
	b.Write(text)
	if b.Len() > maxState {
		return fmt.Errorf("state of %d bytes is too large", b.Len())
	}
	f, err := os.OpenFile(s.disk, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b.Bytes(), stateOffset)
	return errors.Join(err, f.Sync(), f.Close())
}

// install does the installer's work: it fetches the disk image that
// machine.install.image names and writes it to machine.install.disk. The
// registry's protocol is left out: the image is one file behind its name.
func install(ctx context.Context, c *machineConfig) (*state, error) {
	registry, _, _ := strings.Cut(c.installer, "/")
	if _, err := netip.ParseAddrPort(registry); err != nil {
		return nil, fmt.Errorf("machine.install.image %s is not on the test's registry: %w", c.installer, err)
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.installer, nil)
	if err != nil {
		return nil, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("failed to pull image: %w", err)
	}
	defer func() { _ = res.Body.Close() }() // read only
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("failed to pull image %s: %s", c.installer, res.Status)
	}
	image, err := zstd.NewReader(res.Body)
	if err != nil {
		return nil, err
	}
	defer image.Close()
	disk, err := os.OpenFile(c.disk, os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	n, err := io.Copy(disk, io.LimitReader(image, stateOffset+1))
	if err := errors.Join(err, disk.Sync(), disk.Close()); err != nil {
		return nil, fmt.Errorf("writing %s: %w", c.disk, err)
	}
	if n > stateOffset {
		return nil, fmt.Errorf("the installer's image is larger than %d bytes", stateOffset)
	}
	s := &state{Config: c.raw, disk: c.disk}
	return s, errors.Join(s.write(), count(c.disk, 0))
}

// countsOffset is where a disk counts how often it was installed and wiped: two
// numbers, which no wipe reaches, for the test to read.
const countsOffset = 240 << 20

// count adds one to a disk's installs (which 0) or wipes (which 1).
func count(disk string, which int64) error {
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	var b [4]byte
	_, err = f.ReadAt(b[:], countsOffset+4*which)
	if err == nil {
		binary.LittleEndian.PutUint32(b[:], binary.LittleEndian.Uint32(b[:])+1)
		_, err = f.WriteAt(b[:], countsOffset+4*which)
	}
	return errors.Join(err, f.Sync(), f.Close())
}

// errWiped ends a system whose disk is blank now: it reboots.
var errWiped = errors.New("the disk was wiped")

// wipe makes all disks blank, as far as anybody looks for something on them.
func wipe(console *console, how string) error {
	disks, err := filepath.Glob("/dev/vd?")
	if err != nil {
		return err
	}
	zeros := make([]byte, 1<<20)
	for _, disk := range disks {
		f, err := os.OpenFile(disk, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err1 := f.WriteAt(zeros, 0)
		_, err2 := f.WriteAt(zeros, stateOffset)
		if err := errors.Join(err1, err2, f.Sync(), f.Close(), count(disk, 1)); err != nil {
			return fmt.Errorf("wiping %s: %w", disk, err)
		}
	}
	console.say("wiped by %s", how)
	return errWiped
}
