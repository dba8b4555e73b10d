package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/provisiond/provisiond/api"
)

// writeOrigins writes a config with where each line comes from before it.
func writeOrigins(w io.Writer, blocks []api.ConfigBlock) error {
	width := 0
	from := make([]string, len(blocks))
	for i, b := range blocks {
		if from[i] = b.Origin; b.Patch != nil {
			from[i] = fmt.Sprintf("%s[%d]", b.Origin, *b.Patch)
		}
		width = max(width, len(from[i]))
	}
	for i, b := range blocks {
		for line := range strings.Lines(b.Text) {
			if _, err := fmt.Fprintf(w, "%-*s  %s\n", width, from[i], strings.TrimSuffix(line, "\n")); err != nil {
				return err
			}
		}
	}
	return nil
}
