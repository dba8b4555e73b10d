package racktest

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/google/uuid"
	machineapi "github.com/siderolabs/talos/pkg/machinery/api/machine"
	"github.com/siderolabs/talos/pkg/machinery/config"
)

// maxConfig bounds a machine config; Talos has no bound.
const maxConfig = 16 << 20

// acquire is the config controller: it starts over, with back-off, until a
// source gives a complete config. A nil config is maintenance mode.
func (s *system) acquire(ctx context.Context) (config.Provider, []byte, error) {
	retry := backoff{next: s.opts.Timing.Backoff, max: s.opts.Timing.BackoffMax}
	for {
		cfg, text, err := s.sources(ctx)
		var broken *Fault
		if err == nil || ctx.Err() != nil || errors.Is(err, ErrPowerCut) || errors.As(err, &broken) {
			return cfg, text, ended(ctx, err)
		}
		s.events.publish(&machineapi.ConfigLoadErrorEvent{Error: err.Error()})
		s.timeline.add(StepConfig, "config refused: %v", err)
		if err := retry.wait(ctx); err != nil {
			return nil, nil, err
		}
	}
}

// sources tries them in order (controllers/config/acquire.go): STATE, early,
// platform, inline. The config on the disk wins over all.
func (s *system) sources(ctx context.Context) (config.Provider, []byte, error) {
	if text := s.disk.Config(); text != nil {
		cfg, err := loadState(text)
		if err != nil {
			return nil, nil, err
		}
		s.timeline.add(StepConfig, "config from STATE")
		s.kmsg.talos(`machine config loaded successfully {"component": "controller-runtime", "controller": "config.AcquireController", "sources": ["state"]}`)
		return cfg, text, s.activate(ctx, cfg)
	}
	if s.line == nil {
		return nil, nil, nil
	}
	for _, source := range []func(context.Context) ([]byte, string, error){
		func(context.Context) ([]byte, string, error) {
			text, err := s.line.encoded("talos.config.early")
			return text, "via cmdline talos.config.early", err
		},
		func(ctx context.Context) ([]byte, string, error) {
			text, err := s.platformConfig(ctx)
			return text, "via platform " + s.line.first("talos.platform"), err
		},
		func(context.Context) ([]byte, string, error) {
			text, err := s.line.encoded("talos.config.inline")
			return text, "via cmdline talos.config.inline", err
		},
	} {
		text, name, err := source(ctx)
		if err != nil {
			return nil, nil, err
		}
		if text == nil {
			continue
		}
		cfg, err := loadConfig(ctx, text, name, s.disk)
		if err != nil {
			return nil, nil, err
		}
		s.timeline.add(StepConfig, "config %s: %d bytes, complete: %t", name, len(text), cfg.CompleteForBoot())
		if err := s.activate(ctx, cfg); err != nil {
			return nil, nil, err
		}
		if cfg.CompleteForBoot() {
			s.kmsg.talos(`machine config loaded successfully {"component": "controller-runtime", "controller": "config.AcquireController", "sources": ["metal"]}`)
			s.loaded(func(l *Loaded) { l.Config = hash(text) })
			return cfg, text, nil
		}
	}
	return nil, nil, nil
}

// download gets the config from talos.config. Every status but 200 and 204, and
// every broken connection, is tried again after a wait that doubles and has no
// cap; a 204 and an empty body are "config not found".
func (s *system) download(ctx context.Context) ([]byte, error) {
	raw := s.line.first("talos.config")
	switch raw {
	case "", "none":
		return nil, nil
	case labelMetalISO:
		files, err := s.volume(labelMetalISO)
		if err != nil {
			return nil, err
		}
		text, ok := files["config.yaml"]
		if !ok {
			return nil, errors.New("read config: open config.yaml: no such file or directory")
		}
		s.kmsg.talos("read machine config from volume: /dev/sr1 (filesystem \"iso9660\")")
		return text, s.step(StepConfig, "Talos reads its config from a volume")
	}
	if err := s.networkReady(ctx); err != nil {
		return nil, err
	}
	authorization, err := s.authorize(ctx, raw)
	if err != nil {
		return nil, ended(ctx, err)
	}
	target, err := s.fill(raw)
	if err != nil {
		return nil, err
	}
	s.kmsg.talos("fetching machine config from: %q", target)
	if err := s.step(StepConfig, "Talos fetches its config"); err != nil {
		return nil, err
	}
	for n := 0; ; n++ {
		body, err := s.fetch(ctx, target, authorization)
		if err == nil || ctx.Err() != nil {
			return body, ended(ctx, err)
		}
		s.timeline.add(StepConfig, "retrying error: %v", err)
		if err := sleep(ctx, s.waitAfter(n)); err != nil {
			return nil, err
		}
	}
}

// waitAfter is the wait after the n-th try at a download that failed, from 0.
func (s *system) waitAfter(n int) time.Duration {
	units := math.Exp2(float64(min(n, 30))) - 1 + rand.Float64()
	return time.Duration(units * float64(s.opts.Timing.ConfigUnit))
}

// trust is whom the machine trusts over TLS: the roots of the active config, in a file
// that is written a moment after the config became active
// (controllers/secrets/trusted_roots.go). Who needs no config for its network tries
// once before that, and fails.
type trust struct{ roots, written *x509.CertPool }

func (t *trust) set(cfg config.Provider, late bool) {
	t.roots = x509.NewCertPool()
	for _, pem := range cfg.TrustedRoots().ExtraTrustedRootCertificates() {
		t.roots.AppendCertsFromPEM([]byte(pem))
	}
	if !late {
		t.written = t.roots
	}
}

// now is what a try that begins now finds in the file.
func (t *trust) now() *x509.CertPool {
	found := t.written
	if t.written = t.roots; found == nil {
		return x509.NewCertPool() // without those that Talos brings along: none of them is ours
	}
	return found
}

// fetch is one try. The body is never nil then: an empty one is for the loader
// to refuse.
func (s *system) fetch(ctx context.Context, target, authorization string) ([]byte, error) {
	return s.get(ctx, target, authorization, s.trust.now())
}

// get is fetch of who trusts certain roots; nil: those of this host.
func (s *system) get(ctx context.Context, target, authorization string, trusted *x509.CertPool) (body []byte, err error) {
	defer func() { s.fetched(target, err) }()
	ctx, cancel := context.WithTimeout(ctx, s.opts.Timing.ConfigAttempt)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return nil, err
	}
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	// Go's own User-Agent and Accept-Encoding, and Connection: close.
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: trusted}}}
	res, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK && res.StatusCode != http.StatusNoContent {
		return nil, statusError{res.StatusCode}
	}
	body, err = io.ReadAll(io.LimitReader(res.Body, maxConfig))
	if err != nil {
		return nil, err
	}
	if http.DetectContentType(body) == "application/x-gzip" {
		zr, err := gzip.NewReader(bytes.NewReader(body))
		if err != nil {
			return nil, err
		}
		return io.ReadAll(io.LimitReader(zr, maxConfig))
	}
	if body == nil {
		body = []byte{}
	}
	return body, nil
}

// statusError is an answer that is tried again.
type statusError struct{ code int }

func (e statusError) Error() string {
	return fmt.Sprintf("failed to download config, status code %d", e.code)
}

// fill replaces ${uuid}, ${mac}, ${serial} and ${hostname} in the values of the
// query, which is encoded anew then, and fills in an empty uuid=
// (platform/metal/url). Other parts of the URL are left alone.
func (s *system) fill(raw string) (string, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return "", fmt.Errorf("failed to parse the config URL: %w", err)
	}
	values := map[string]string{"mac": s.MAC().String(), "serial": s.Serial(), "hostname": s.net.hostname}
	if s.opts.UUID != uuid.Nil {
		values["uuid"] = s.opts.UUID.String()
	}
	query, changed := u.Query(), false
	for key, list := range query {
		for i, v := range list {
			filled := v
			if key == "uuid" && v == "" {
				filled = values["uuid"]
			}
			for name, value := range values {
				if value != "" { // else Talos waits 90 s and sends the variable itself
					filled = replaceFold(filled, "${"+name+"}", value)
				}
			}
			changed = changed || filled != v
			list[i] = filled
		}
	}
	if changed || strings.Contains(raw, "${") {
		u.RawQuery = query.Encode()
	}
	return u.String(), nil
}

// replaceFold is strings.ReplaceAll with ASCII case folding.
func replaceFold(s, old, with string) string {
	for i := 0; i+len(old) <= len(s); {
		if strings.EqualFold(s[i:i+len(old)], old) {
			s = s[:i] + with + s[i+len(old):]
			i += len(with)
			continue
		}
		i++
	}
	return s
}
