//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/siderolabs/talos/pkg/machinery/config"
	"github.com/siderolabs/talos/pkg/machinery/config/configloader"
)

// machineConfig is what the rest needs of a machine config.
type machineConfig struct {
	raw       []byte
	installer string // machine.install.image
	disk      string // machine.install.disk
	sink      string // EventSinkConfig; empty: none
	// Of the LinkConfig that names its link by MAC.
	mac       net.HardwareAddr
	addresses []netip.Prefix
	gateway   netip.Addr
	hostname  string
}

// metal is validation.RuntimeMode of Talos' metal platform.
type metal struct{}

func (metal) String() string        { return "metal" }
func (metal) RequiresInstall() bool { return true }
func (metal) InContainer() bool     { return false }

// acquire returns the config that is stored on the disk, or else fetches one
// until it is good: a bad config is not the end for Talos, it asks again.
func acquire(ctx context.Context, console *console, line *commandLine, stored *state) (*machineConfig, error) {
	if stored != nil {
		return loadConfig(stored.Config)
	}
	roots, err := trusted(line.early)
	if err != nil {
		return nil, err
	}
	client := httpClient(roots)
	// What Talos' controllers wait when they start over (cenkalti/backoff).
	wait := 500 * time.Millisecond
	for {
		c, err := fetch(ctx, console, line, client)
		if err == nil || ctx.Err() != nil {
			return c, err
		}
		console.say("config refused: %v", err)
		if err := sleep(ctx, time.Duration(float64(wait)*(0.5+rand.Float64()))); err != nil {
			return nil, err
		}
		wait = min(wait*3/2, time.Minute)
	}
}

func fetch(ctx context.Context, console *console, line *commandLine, client *http.Client) (*machineConfig, error) {
	authorization, err := authorize(ctx, console, line, client)
	if err != nil {
		return nil, err
	}
	raw, err := download(ctx, console, client, line.configURL, authorization)
	if err != nil {
		return nil, err
	}
	return loadConfig(raw)
}

// download asks until the answer is 200 or 204, with Talos' gaps: (2^n-1)/2 s
// and up to 1 s more, without a cap (pkg/download).
func download(ctx context.Context, console *console, client *http.Client, url, authorization string) ([]byte, error) {
	for n := range 14 { // 3 h
		gap := time.Duration(1<<n-1) * 500 * time.Millisecond
		if n > 0 {
			gap += rand.N(time.Second)
		}
		if err := sleep(ctx, gap); err != nil {
			return nil, err
		}
		body, err := get(ctx, client, url, authorization)
		if err == nil {
			return body, nil
		}
		console.say("config fetch failed: %v", err)
	}
	return nil, errors.New("no config after 3 h")
}

func get(ctx context.Context, client *http.Client, url, authorization string) ([]byte, error) {
	const attempt = 3 * time.Minute // Talos' limit of one try
	ctx, cancel := context.WithTimeout(ctx, attempt)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	res, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }() // read only
	if res.StatusCode != http.StatusOK && res.StatusCode != http.StatusNoContent {
		return nil, errors.New(res.Status)
	}
	return io.ReadAll(io.LimitReader(res.Body, 16<<20))
}

// loadConfig loads and validates as Talos' metal platform does, and refuses a
// config the machine could not come up with.
func loadConfig(raw []byte) (*machineConfig, error) {
	cfg, err := configloader.NewFromBytes(raw)
	if err != nil {
		return nil, err
	}
	if _, err := cfg.Validate(metal{}); err != nil {
		return nil, err
	}
	if !cfg.CompleteForBoot() {
		return nil, errors.New("the config has no machine section: Talos would wait in maintenance mode")
	}
	install := cfg.Machine().Install()
	c := &machineConfig{raw: raw, installer: install.Image(), disk: install.Disk()}
	if r := cfg.Runtime(); r != nil && r.EventsEndpoint() != nil {
		c.sink = *r.EventsEndpoint()
	}
	if h := cfg.NetworkHostnameConfig(); h != nil {
		c.hostname = h.Hostname()
	}
	return c, c.readLinks(cfg)
}

func (c *machineConfig) readLinks(cfg config.Provider) error {
	for _, link := range cfg.NetworkCommonLinkConfigs() {
		mac, err := macOf(link.Name())
		if err != nil {
			return fmt.Errorf("LinkConfig %s: %w", link.Name(), err)
		}
		c.mac = mac
		for _, a := range link.Addresses() {
			c.addresses = append(c.addresses, a.Address())
		}
		for _, r := range link.Routes() {
			if gateway, ok := r.Gateway().Get(); ok && !r.Destination().IsPresent() {
				c.gateway = gateway
			}
		}
	}
	if len(c.addresses) == 0 {
		return errors.New("no LinkConfig with an address: the machine would lose the one of its kernel line")
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
