package racktest

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/siderolabs/talos/pkg/machinery/config"
)

// kernelLog is the kernel's ring buffer in one run of Talos. A receiver is sent
// all of it with each connection. A nil one takes lines and keeps none.
type kernelLog struct {
	began time.Time
	took  time.Duration // by the kernel, before Talos' first line

	mu    sync.Mutex
	lines [][]byte
	grown chan struct{} // closed when a line was added
}

func newKernelLog() *kernelLog {
	return &kernelLog{
		began: time.Now(), grown: make(chan struct{}),
		took: 2*time.Second + rand.N(time.Second).Truncate(time.Microsecond), // the clock of no two boots is alike
	}
}

// kernel adds a line of the first ones, whose clock is 0 in every boot.
func (l *kernelLog) kernel(format string, args ...any) {
	l.add("kern", "notice", "info", 0, fmt.Sprintf(format, args...))
}

// talos adds a line of Talos. All of them are warnings, errors too.
func (l *kernelLog) talos(format string, args ...any) {
	if l != nil {
		l.add("user", "warning", "warn", l.took+time.Since(l.began), "[talos] "+fmt.Sprintf(format, args...))
	}
}

func (l *kernelLog) add(facility, priority, level string, clock time.Duration, text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	line, err := json.Marshal(map[string]any{
		"clock": clock.Microseconds(), "facility": facility, "msg": text + "\n", "priority": priority, "seq": len(l.lines),
		"talos-level": level, "talos-time": time.Now().UTC().Format(time.RFC3339Nano),
	})
	if err != nil {
		panic(fmt.Sprintf("marshalling a kernel line: %v", err)) // texts and numbers
	}
	l.lines = append(l.lines, append(line, '\n'))
	close(l.grown)
	l.grown = make(chan struct{})
}

// from returns the lines from i on, or a channel that closes when there may be
// one.
func (l *kernelLog) from(i int) ([][]byte, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lines[i:], l.grown
}

// stream sends the log to a receiver (Talos controllers/runtime/kmsg_log.go),
// with back-off from the first line again when it fails. When draining closes it
// sends what is left and returns.
func (l *kernelLog) stream(ctx context.Context, endpoint string, t Timing, draining <-chan struct{}) {
	retry := backoff{next: t.Backoff, max: t.BackoffMax}
	for ctx.Err() == nil {
		err := l.connection(ctx, endpoint, draining)
		if err == nil {
			return
		}
		select {
		case <-draining:
			return
		default:
		}
		if retry.wait(ctx) != nil {
			return
		}
	}
}

func (l *kernelLog) connection(ctx context.Context, endpoint string, draining <-chan struct{}) error {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", endpoint)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	gone := make(chan struct{}) // the receiver says nothing: what can be read is its end
	go func() { defer close(gone); _, _ = conn.Read(make([]byte, 1)) }()
	defer func() { _ = conn.Close(); <-gone }()
	for sent, last := 0, false; ; {
		lines, grown := l.from(sent)
		for _, line := range lines {
			if _, err := conn.Write(line); err != nil {
				return err
			}
			sent++
		}
		if last {
			return nil
		}
		select {
		case <-grown:
		case <-draining:
			last = true
		case <-gone:
			return fmt.Errorf("%s closed the connection", endpoint)
		case <-ctx.Done():
			return nil
		}
	}
}

// setKernelLog streams to the receiver that is to be used now, as setSink does.
func (s *system) setKernelLog(ctx context.Context, active config.Provider) {
	target := ""
	if s.line != nil {
		target = s.line.first("talos.logging.kernel")
	}
	if active != nil {
		if urls := active.Runtime().KmsgLogURLs(); len(urls) > 0 {
			target = urls[0].String()
		}
	}
	u, err := url.Parse(target)
	if err != nil || u.Scheme != "tcp" || len(s.net.addresses()) == 0 {
		target = ""
	}
	if target == s.receiver {
		return
	}
	if s.stopReceiver != nil {
		s.stopReceiver()
	}
	s.receiver, s.stopReceiver = target, nil
	if target == "" {
		return
	}
	done := make(chan struct{})
	streaming, cancel := context.WithCancel(ctx)
	s.stopReceiver = func() { cancel(); <-done }
	s.timeline.add(StepConfig, "the kernel log goes to %s", u.Host)
	s.live.Go(func() {
		defer close(done)
		s.kmsg.stream(streaming, u.Host, s.opts.Timing, s.draining)
	})
}

// sayHostname is what Talos says when it takes another name.
func (s *system) sayHostname() {
	if s.net.hostname == s.saidHostname {
		return
	}
	s.saidHostname = s.net.hostname
	s.kmsg.talos(`setting hostname {"component": "controller-runtime", "controller": "network.HostnameSpecController", "hostname": %q, "domainname": ""}`, s.saidHostname)
}

// titled is an action as Talos' log has it.
func titled(action string) string {
	if action == "" {
		return action
	}
	return action[:1] + strings.ToLower(action[1:])
}
