package racktest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/kdomanski/iso9660"
	"go.yaml.in/yaml/v4"
)

// The kernel lines of media that look for a config by themselves: Talos' own ISO with
// one argument more, and its nocloud image.
const (
	MetalISOLine = "talos.platform=metal console=tty0 init_on_alloc=1 slab_nomerge pti=on consoleblank=0 talos.config=metal-iso"
	NoCloudLine  = "talos.platform=nocloud console=tty1 console=ttyS0 net.ifnames=0 init_on_alloc=1 slab_nomerge pti=on consoleblank=0"
)

const labelMetalISO = "metal-iso"

// Plug puts volumes in, in place of those that were there.
func (m *Machine) Plug(images ...[]byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.volumes = images
}

// SetSerial changes the serial number in SMBIOS.
func (m *Machine) SetSerial(serial string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.serial = serial
}

// Serial is the serial number in SMBIOS.
func (m *Machine) Serial() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.serial
}

// volume reads the files of the first volume that has one of the labels, which count
// letter by letter (platform/internal/blockutils).
func (m *Machine) volume(labels ...string) (map[string][]byte, error) {
	m.mu.Lock()
	volumes := slices.Clone(m.volumes)
	m.mu.Unlock()
	for _, v := range volumes {
		label, files, err := readISO(v)
		if err != nil {
			return nil, err
		}
		if slices.Contains(labels, label) {
			return files, nil
		}
	}
	return nil, fmt.Errorf("failed to find volume with machine configuration %q: %w", labels, fs.ErrNotExist)
}

func readISO(b []byte) (label string, files map[string][]byte, err error) {
	image, err := iso9660.OpenImage(bytes.NewReader(b))
	if err != nil {
		return "", nil, err
	}
	if label, err = image.Label(); err != nil {
		return "", nil, err
	}
	root, err := image.RootDir()
	if err != nil {
		return "", nil, err
	}
	list, err := root.GetChildren()
	if err != nil {
		return "", nil, err
	}
	files = map[string][]byte{}
	for _, f := range list {
		if files[f.Name()], err = io.ReadAll(io.LimitReader(f.Reader(), maxConfig)); err != nil {
			return "", nil, err
		}
	}
	return label, files, nil
}

// platformConfig asks the platform for the config. Nothing is no error.
func (s *system) platformConfig(ctx context.Context) ([]byte, error) {
	if !s.onNoCloud() {
		return s.download(ctx)
	}
	files, err := s.noCloud(ctx)
	if errors.Is(err, errNoConfigSource) {
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	switch first, _, _ := strings.Cut(string(files.userData), "\n"); strings.TrimSpace(first) {
	case "#cloud-config":
		return nil, nil
	case "#include":
		return nil, errors.New("the simulated Talos includes nothing")
	}
	return files.userData, s.step(StepConfig, "Talos has its config as user-data")
}

// onNoCloud is what the kernel line says, and what was installed from there says too.
func (s *system) onNoCloud() bool {
	if s.line != nil {
		return s.line.first("talos.platform") == "nocloud"
	}
	return s.disk.noCloud()
}

// errNoConfigSource ends the search; Talos goes on to maintenance mode.
var errNoConfigSource = errors.New("no config source")

// noCloudFiles are nil where there are none.
type noCloudFiles struct{ metaData, networkConfig, userData []byte }

// noCloud reads all three files, as Talos does for its network and again for its config
// (platform/nocloud): from a server that SMBIOS names, else from a volume.
func (s *system) noCloud(ctx context.Context) (files noCloudFiles, err error) {
	base := s.noCloudServer()
	if base == "" {
		return s.noCloudVolume()
	}
	if err := s.networkReady(ctx); err != nil {
		return files, err
	}
	return s.noCloudFrom(ctx, base)
}

// noCloudServer is the URL in the serial number, empty if there is none.
func (m *Machine) noCloudServer() string {
	network, base := false, ""
	for option := range strings.SplitSeq(m.Serial(), ";") {
		key, value, ok := strings.Cut(option, "=")
		switch {
		case ok && key == "ds" && value == "nocloud-net":
			network = true
		case ok && key == "s":
			if u, err := url.Parse(value); err == nil && strings.HasPrefix(u.Scheme, "http") {
				base = strings.TrimSuffix(value, "/") + "/"
			}
		}
	}
	if !network {
		return ""
	}
	return base
}

func (m *Machine) noCloudVolume() (files noCloudFiles, err error) {
	volume, err := m.volume("cidata", "CIDATA")
	if errors.Is(err, fs.ErrNotExist) {
		return files, errNoConfigSource
	}
	if err != nil {
		return files, err
	}
	files = noCloudFiles{volume["meta-data"], volume["network-config"], volume["user-data"]}
	if files.userData == nil {
		return files, errNoConfigSource
	}
	return files, nil
}

func (s *system) noCloudFrom(ctx context.Context, base string) (files noCloudFiles, err error) {
	s.kmsg.talos("fetching meta config from: %q", base+"meta-data")
	files.metaData, _ = s.noCloudFile(ctx, base+"meta-data") // it does without
	s.kmsg.talos("fetching network config from: %q", base+"network-config")
	files.networkConfig, _ = s.noCloudFile(ctx, base+"network-config")
	s.kmsg.talos("fetching machine config from: %q", base+"user-data")
	files.userData, err = s.noCloudFile(ctx, base+"user-data")
	return files, ended(ctx, err)
}

// noCloudFile downloads one (pkg/download): in all it may take as long as one try at
// talos.config, and what fails is tried again but for a 404 of user-data. Nothing in it
// is nil, and for user-data the end of the search.
func (s *system) noCloudFile(ctx context.Context, target string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, s.opts.Timing.ConfigAttempt)
	defer cancel()
	none := error(nil)
	if strings.HasSuffix(target, "/user-data") {
		none = errNoConfigSource
	}
	for n := 0; ; n++ {
		body, err := s.get(ctx, target, "", nil)
		var status statusError
		switch {
		case err == nil && len(body) == 0:
			return nil, none
		case err == nil:
			return body, nil
		case none != nil && errors.As(err, &status) && status.code == 404:
			return nil, none
		}
		s.timeline.add(StepConfig, "retrying error: %v", err)
		if err := sleep(ctx, s.waitAfter(n)); err != nil {
			return nil, err
		}
	}
}

// networkConfig is as much of version 2 as Talos reads of one NIC, but for IPv4, bonds
// and VLANs.
type networkConfig struct {
	Version   int `yaml:"version"`
	Ethernets map[string]struct {
		Match struct {
			HWAddr string `yaml:"macaddress"`
		} `yaml:"match"`
		DHCPv6    bool     `yaml:"dhcp6"`
		Addresses []string `yaml:"addresses"`
		Routes    []struct {
			To  string `yaml:"to"`
			Via string `yaml:"via"`
		} `yaml:"routes"`
		NameServers struct {
			Addresses []string `yaml:"addresses"`
		} `yaml:"nameservers"`
	} `yaml:"ethernets"`
}

// platformNetwork is the network of the platform, which comes before the config and
// beside it (controllers/network/platform_config.go).
func (s *system) platformNetwork(ctx context.Context) error {
	if !s.onNoCloud() || s.line == nil {
		return nil
	}
	files, err := s.noCloud(ctx)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil && !errors.Is(err, errNoConfigSource) {
		s.timeline.add(StepConfig, "restarting platform network config: %v", err)
		return nil
	}
	if files.networkConfig == nil {
		return nil
	}
	if err := s.net.fromNoCloud(ctx, files); err != nil {
		s.timeline.add(StepConfig, "restarting platform network config: %v", err)
	}
	return nil
}

// platformAgain is platformNetwork of an installed system, which reads the files at each
// start. Its config has said all of it already.
func (s *system) platformAgain(ctx context.Context) {
	base := s.noCloudServer()
	if !s.onNoCloud() || s.line != nil || base == "" {
		return
	}
	s.live.Go(func() {
		files, err := s.noCloudFrom(ctx, base)
		if ctx.Err() == nil {
			s.timeline.add(StepConfig, "NoCloud on an installed system: meta-data %t, network-config %t, user-data %t, %v", files.metaData != nil, files.networkConfig != nil, files.userData != nil, err)
		}
	})
}

// fromNoCloud applies meta-data and network-config. What is not as Talos reads it is an
// error, and what names another NIC comes to nothing.
func (l *links) fromNoCloud(ctx context.Context, files noCloudFiles) error {
	var meta struct {
		Hostname      string `yaml:"hostname"`
		LocalHostname string `yaml:"local-hostname"`
		Instance      string `yaml:"instance-id"`
	}
	if err := yaml.Unmarshal(files.metaData, &meta); err != nil {
		return err
	}
	if l.hostname = meta.Hostname; l.hostname == "" {
		l.hostname = meta.LocalHostname
	}
	var c networkConfig
	if err := yaml.Unmarshal(files.networkConfig, &c); err != nil {
		return err
	}
	if c.Version != 2 {
		return fmt.Errorf("network-config metadata version=%d is not supported here", c.Version)
	}
	for name, nic := range c.Ethernets {
		if !strings.EqualFold(nic.Match.HWAddr, l.MAC().String()) {
			l.timeline.add(StepConfig, "nocloud: no link with matching MAC address %q, for %s", nic.Match.HWAddr, name)
			continue
		}
		for _, text := range nic.Addresses {
			a, err := netip.ParsePrefix(text)
			if err != nil {
				return err
			}
			l.platform = append(l.platform, a.Addr())
		}
		for _, r := range nic.Routes {
			if _, err := netip.ParsePrefix(r.To); err != nil && r.To != "default" {
				return fmt.Errorf("failed to parse route destination: %w", err)
			}
			if _, err := netip.ParseAddr(r.Via); err != nil {
				return fmt.Errorf("failed to parse route gateway: %w", err)
			}
		}
		for _, text := range nic.NameServers.Addresses {
			if _, err := netip.ParseAddr(text); err != nil {
				return err
			}
		}
		if nic.DHCPv6 {
			return l.solicit(ctx)
		}
	}
	return l.take(l.platform)
}
