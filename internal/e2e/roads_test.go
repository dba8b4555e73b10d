//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"golang.org/x/sync/errgroup"
)

// road is one way of a machine from its firmware to its config, and what it took.
type road struct {
	name           string
	vm             *vm
	kernel, config time.Time // when its console told of them
}

// race switches machines on at the same time and follows each until it has its config.
func race(ctx context.Context, t *testing.T, roads ...*road) {
	t.Helper()
	group, ctx := errgroup.WithContext(ctx)
	for _, r := range roads {
		r.vm.powerOn(t)
		group.Go(func() (err error) {
			for _, mark := range []struct {
				text string
				at   *time.Time
			}{{"Linux version", &r.kernel}, {"GUEST: config ok", &r.config}} {
				if _, err := r.vm.await(ctx, mark.text); err != nil {
					return err
				}
				*mark.at = time.Now()
			}
			return nil
		})
	}
	must(t, group.Wait())
}

// compare logs what the roads took, as a table: bytes in TCP and UDP, and seconds from
// the machine's first packet. Packets are not counted: what is recorded of TCP are pieces
// that the kernel cuts up afterwards.
func compare(t *testing.T, capture string, roads ...*road) {
	t.Helper()
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "road\tMB to the kernel\ts to the kernel's first line\ts to the config")
	for _, r := range roads {
		var first time.Time
		size := 0
		fields := command(t, "tshark", "-n", "-r", capture, "-T", "fields", "-e", "frame.time_epoch", "-e", "tcp.len", "-e", "udp.length", "-Y", "eth.addr == "+r.vm.mac.String())
		for line := range strings.Lines(fields) {
			stamp, lengths, _ := strings.Cut(line, "\t")
			seconds, err := strconv.ParseFloat(stamp, 64)
			must(t, err)
			at := time.UnixMicro(int64(seconds * 1e6))
			if first.IsZero() {
				first = at
			}
			if at.Before(r.kernel) {
				for length := range strings.FieldsSeq(lengths) { // of an ICMPv6 there is none
					n, err := strconv.Atoi(length)
					must(t, err)
					size += n
				}
			}
		}
		if size == 0 {
			t.Errorf("%s: no packet of %s was recorded before its kernel", r.name, r.vm.name)
		}
		fmt.Fprintf(w, "%s\t%.1f\t%.1f\t%.1f\n", r.name, float64(size)/1e6, r.kernel.Sub(first).Seconds(), r.config.Sub(first).Seconds())
	}
	must(t, w.Flush())
	t.Logf("the roads from firmware to a config, two machines at a time:\n%s", table.String())
}
