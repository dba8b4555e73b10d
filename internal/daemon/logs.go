package daemon

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/machinelog"
	"github.com/provisiond/provisiond/internal/talos"
)

// machineLogs is the store of the machines' logs, as what hears machines fills it
// and operators read it.
type machineLogs struct {
	store  *machinelog.Store
	keeper *inventory.Keeper
}

// openLogs makes the store and the parts that write it and tidy it up.
func (d *Daemon) openLogs(cfg *Config, keeper *inventory.Keeper) machineLogs {
	logs := machineLogs{machinelog.New(filepath.Join(cfg.Data, "logs"), machinelog.Options{}), keeper}
	d.onClose(logs.store.Close)
	log := component(d.log, "logs")
	d.run("logs", func(ctx context.Context) error {
		return logs.store.Run(ctx, func(err error) { log.Error().Err(err).Msg("cannot write what machines say; trying again") })
	})
	d.run("log sweep", func(ctx context.Context) error {
		tick := time.NewTicker(time.Hour)
		defer tick.Stop()
		for {
			// A machine is removed together with its log. What is left are lines that
			// came in that instant, and the logs of a database that was restored.
			removed, err := logs.store.Sweep(func(name string) (bool, error) { return logs.registered(ctx, name) })
			if err != nil && ctx.Err() == nil {
				log.Warn().Err(err).Msg("cannot sweep the logs of removed machines")
			}
			if len(removed) > 0 {
				log.Info().Strs("machines", removed).Msg("removed logs of machines that are gone")
			}
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
		}
	})
	return logs
}

// registered reports whether there is a machine of this very name.
func (m machineLogs) registered(ctx context.Context, name string) (bool, error) {
	v, err := m.keeper.Machine(ctx, name)
	if errors.Is(err, inventory.ErrNotFound) {
		return false, nil
	}
	return err == nil && v.Machine.Name == name, err
}

// Event implements talos.Logs.
func (m machineLogs) Event(machine string, l talos.LogLine) error {
	// The sink goes on hearing a machine that was removed.
	if is, err := m.registered(context.Background(), machine); err != nil || !is {
		return errors.Join(err, machinelog.ErrRemoved)
	}
	return m.store.Append(machine, machinelog.Line{Kind: machinelog.Event, Time: l.Time, ID: l.ID, Text: l.Text})
}

// Kernel implements talos.Logs.
func (m machineLogs) Kernel(machine string) (talos.KernelLines, error) {
	stream, err := m.store.Stream(machine)
	if err != nil {
		return nil, err
	}
	return kernelLines{stream}, nil
}

type kernelLines struct{ *machinelog.Stream }

// Append implements talos.KernelLines.
func (k kernelLines) Append(l talos.LogLine) error {
	return k.Stream.Append(machinelog.Line{Time: l.Time, Seq: l.Seq, Clock: l.Clock, Facility: l.Facility, Level: l.Level, Text: l.Text})
}

// Tail implements admin.Logs.
func (m machineLogs) Tail(machine string, n int) ([]api.LogLine, error) {
	lines, err := m.store.Tail(machine, n)
	return shown(lines), err
}

// After implements admin.Logs.
func (m machineLogs) After(machine string, id uint64) ([]api.LogLine, error) {
	lines, err := m.store.After(machine, id)
	return shown(lines), err
}

// Watch implements admin.Logs.
func (m machineLogs) Watch(machine string) (<-chan struct{}, func(), error) {
	return m.store.Watch(machine)
}

func shown(lines []machinelog.Line) []api.LogLine {
	out := make([]api.LogLine, len(lines))
	for i, l := range lines {
		out[i] = api.LogLine{
			ID: l.N, Time: l.Time, Kind: string(l.Kind), Boot: l.Boot, Seq: l.Seq, Uptime: l.Clock.Seconds(),
			Facility: l.Facility, Level: l.Level, Text: l.Text,
		}
	}
	return out
}

// operators is the inventory as operators change it: a machine's log goes with
// the machine.
type operators struct {
	*inventory.Keeper
	logs machineLogs
}

// DeleteMachine implements admin.Machines.
func (o operators) DeleteMachine(ctx context.Context, name string, rev uint64) error {
	if err := o.Keeper.DeleteMachine(ctx, name, rev); err != nil {
		return err
	}
	return o.logs.store.Remove(name)
}
