package daemon

import (
	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/tracing"
)

// rawTracing is tracing as it is written.
type rawTracing struct {
	Endpoint    string `yaml:"endpoint"`
	HeadersFile string `yaml:"headersFile"`
	CA          string `yaml:"ca"`
}

// config checks what is written, and returns it; nil: there is no tracing.
func (r rawTracing) config() (*tracing.Config, error) {
	if r.Endpoint == "" {
		if r.HeadersFile != "" || r.CA != "" {
			return nil, &inventory.FieldError{Field: "tracing.endpoint", Problem: "there is none", Fix: "the URL of a collector, such as https://otel.example.org:4318"}
		}
		return nil, nil
	}
	c := &tracing.Config{Endpoint: r.Endpoint, HeadersFile: r.HeadersFile, CAFile: r.CA}
	return c, c.Validate()
}

// checkTracing reads the files of tracing.
func (c *Config) checkTracing() error {
	if c.Tracing == nil {
		return nil
	}
	_, err := tracing.NewCollector(*c.Tracing, "")
	return err
}

// trace adds what tells a collector how machines booted, if there is one.
func (d *Daemon) trace(cfg *Config, keeper *inventory.Keeper) error {
	if cfg.Tracing == nil {
		return nil
	}
	collector, err := tracing.NewCollector(*cfg.Tracing, d.version)
	if err != nil {
		return err
	}
	traces := tracing.New(keeper, collector, cfg.Stall, component(d.log, "tracing"))
	d.count(traces)
	d.run("tracing", traces.Run)
	return nil
}
