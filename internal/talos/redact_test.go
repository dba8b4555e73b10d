package talos

import "testing"

// What was typed at the wrong place is not repeated; where it stood is told.
func TestErrorsQuoteNoValues(t *testing.T) {
	for name, tt := range map[string]struct{ said, want string }{
		"unknown key":        {"error decoding document /v1alpha1/ (line 1): unknown keys found during decoding:\nmachine:\n    secret: hunter2\n", "error decoding document /v1alpha1/ (line 1): unknown keys machine.secret"},
		"several":            {unknownKeys + "\na: hunter2\nb:\n    - c: hunter2\n      d: {}\n    - hunter2\n", "unknown keys a, b[0].c, b[0].d, b[1]"},
		"more than one line": {unknownKeys + "\na: |\n    hunter2\n    b: hunter2\n", "unknown keys a"},
		"on one line":        {unknownKeys + " machine:     secret: hunter2 ", "unknown keys"},
		"escaped":            {unknownKeys + `\x0amachine:\x0a    secret: hunter2`, `unknown keys \x0amachine:\x0a    secret`},
		"nothing":            {unknownKeys, "unknown keys"},
		"a text alone":       {unknownKeys + "\nhunter2", "unknown keys "},
		"wrong type":         {"line 1: cannot construct !!str `hunter2` into bool\n  line 2: cannot construct !!str `hunter...` into int", "line 1: cannot construct !!str into bool\n  line 2: cannot construct !!str into int"},
		"a number":           {"line 1: cannot construct !!str `9000` into uint32", "line 1: cannot construct !!str `9000` into uint32"},
		"another error":      {"no such file", "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := withoutValues(tt.said); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
