package daemon

import (
	"context"
	"time"

	"github.com/rs/zerolog"
)

// lowDisk is how little free space is worth a warning: a rack's facts, events
// and one more boot image fit into it.
const lowDisk = 512 << 20

// watchDisk says every ten minutes that the disk of the data folder is nearly
// full, and once that it is well again. When it is full, what needs no write is
// still answered, and everything else fails with an error that names it.
func watchDisk(ctx context.Context, path string, log zerolog.Logger) error {
	tick := time.NewTicker(10 * time.Minute)
	defer tick.Stop()
	low := false
	for {
		if free, err := freeSpace(path); err != nil {
			log.Warn().Err(err).Msg("cannot see how full the disk is")
		} else {
			was := low
			if low = free < lowDisk; low {
				log.Warn().Str("path", path).Uint64("freeBytes", free).Msg("the disk of the database is nearly full: free some space")
			} else if was {
				log.Info().Str("path", path).Uint64("freeBytes", free).Msg("the disk of the database has space again")
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
