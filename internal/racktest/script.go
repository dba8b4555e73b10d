package racktest

import (
	"context"
	"errors"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	// maxCommands bounds a script that goes round in circles.
	maxCommands = 100_000
	// maxChain bounds scripts that chain scripts.
	maxChain = 16
)

// scriptExit is the `exit` command; it ends one script.
type scriptExit struct{ status int }

func (e *scriptExit) Error() string { return "exit " + strconv.Itoa(e.status) }

// program is a script that was downloaded.
type program struct {
	at    *url.URL
	lines []string
}

// Error makes it what ends a script that is replaced by it: it runs in that one's
// place, so that they may go on without end, and no `||` of the first hears how the
// second ends (image_exec in iPXE's core/image.c, imgexec in hci/commands/image_cmd.c).
func (p *program) Error() string { return "replaced by " + p.at.String() }

func parse(at *url.URL, text []byte) (*program, error) {
	body, ok := strings.CutPrefix(string(text), "#!ipxe")
	if !ok || !strings.HasPrefix(strings.TrimLeft(body, " \t\r"), "\n") {
		return nil, fault("", "iPXE: %s: exec format error: it does not begin with a #!ipxe line", at)
	}
	return &program{at, strings.Split(strings.ReplaceAll(body, "\\\n", " "), "\n")}, nil
}

// script runs an iPXE script, and those that replace it.
func (x *ipxe) script(ctx context.Context, p *program) error {
	outer := x.cwd
	defer func() { x.cwd = outer }()
	for {
		x.cwd = p.at
		if err := x.execute(ctx, p.at, p.lines); !errors.As(err, &p) {
			return err
		}
	}
}

// execute takes one script line by line. A command that fails ends it with that error,
// unless `||` follows (ipxe.org/scripting).
func (x *ipxe) execute(ctx context.Context, at *url.URL, lines []string) error {
	for i := 0; i < len(lines); i++ {
		line := strings.TrimSpace(lines[i])
		if line == "" || line[0] == '#' || line[0] == ':' {
			continue
		}
		if x.commands++; x.commands > maxCommands {
			return fault("", "iPXE: %s: more than %d commands", at, maxCommands)
		}
		label, err := x.line(ctx, line)
		var exit *scriptExit
		switch {
		case errors.As(err, &exit):
			x.timeline.add(StepScript, "%s: %v", at, exit)
			if exit.status != 0 {
				return errExit
			}
			return nil
		case err != nil:
			return err
		case label == "":
			continue
		}
		if i = labelled(lines, label); i < 0 {
			return fault("", "iPXE: %s: goto %s: no such label", at, label)
		}
	}
	return nil
}

func labelled(lines []string, label string) int {
	for i, l := range lines {
		if strings.TrimSpace(l) == ":"+label {
			return i
		}
	}
	return -1
}

// line runs the commands of one line, and returns a label to go to.
func (x *ipxe) line(ctx context.Context, line string) (label string, err error) {
	words := strings.Fields(x.expand(line))
	for { // an empty command succeeds: `cmd ||` ignores a failure
		end := len(words)
		for i, w := range words {
			if w == "||" || w == "&&" {
				end = i
				break
			}
		}
		label, err = x.command(ctx, words[:end])
		if final(ctx, err) || label != "" {
			return label, err
		}
		// Skip what this result does not call for.
		for end < len(words) && (words[end] == "||") == (err == nil) {
			next := end + 1
			for next < len(words) && words[next] != "||" && words[next] != "&&" {
				next++
			}
			end = next
		}
		if end >= len(words) {
			return "", err
		}
		words = words[end+1:]
	}
}

// final errors are not for `||`: the machine is gone, or another program's.
func final(ctx context.Context, err error) bool {
	var exit *scriptExit
	var booted *bootedKernel
	var replaced *program
	return err != nil && (ctx.Err() != nil || errors.Is(err, ErrPowerCut) || errors.As(err, &exit) || errors.As(err, &booted) || errors.As(err, &replaced))
}

// expand replaces ${setting} and ${setting:format}; an unknown setting is empty.
func (x *ipxe) expand(s string) string {
	for range 64 {
		end := strings.Index(s, "}")
		if end < 0 {
			return s
		}
		start := strings.LastIndex(s[:end], "${") // innermost first
		if start < 0 {
			return s[:end+1] + x.expand(s[end+1:])
		}
		name, format, _ := strings.Cut(s[start+2:end], ":")
		value, ok := x.settings[name]
		if !ok {
			value, _ = x.builtin(name)
		}
		switch format {
		case "hexhyp":
			value = strings.ReplaceAll(value, ":", "-")
		case "hexraw":
			value = strings.NewReplacer(":", "", "-", "").Replace(value)
		case "uristring":
			value = url.QueryEscape(value)
		}
		s = s[:start] + value + s[end+1:]
	}
	return s
}

// command runs one command of the subset that a boot server has use for.
func (x *ipxe) command(ctx context.Context, words []string) (label string, err error) {
	if len(words) == 0 {
		return "", nil
	}
	name, args := words[0], words[1:]
	options, args := splitOptions(name, args)
	arg := func(i int) string {
		if i < len(args) {
			return args[i]
		}
		return ""
	}
	failed := errors.New("iPXE: " + strings.Join(words, " ") + ": failed")
	usage := fault("", "iPXE: usage: %s", strings.Join(words, " "))
	switch name {
	case "set":
		if len(args) == 0 {
			return "", usage
		}
		x.settings[args[0]] = strings.Join(args[1:], " ")
	case "clear":
		delete(x.settings, arg(0))
	case "isset":
		if len(args) == 0 {
			return "", failed
		}
	case "iseq":
		if arg(0) != arg(1) {
			return "", failed
		}
	case "echo":
		x.timeline.add(StepScript, "iPXE says: %s", strings.Join(args, " "))
	case "sleep":
		seconds, err := strconv.Atoi(arg(0))
		if err != nil || seconds < 0 {
			return "", usage
		}
		return "", sleep(ctx, time.Duration(seconds)*x.opts.Timing.ScriptSecond)
	case "goto":
		if len(args) != 1 {
			return "", usage
		}
		return args[0], nil
	case "exit":
		status, _ := strconv.Atoi(arg(0))
		return "", &scriptExit{status}
	case "ifopen", "ifclose", "ifstat", "imgstat", "route":
	case "ifconf", "dhcp":
		if c := options["configurator"]; c != "" && c != "ipv6" {
			return "", failed // IPv4 and others find nobody
		}
		if err := x.configure(ctx); err != nil {
			return "", err
		}
		if _, given := options["configurator"]; !given {
			return "", sleep(ctx, x.opts.Timing.DHCPv4)
		}
	case "imgfree":
		clear(x.images)
		x.kernel = nil
	case "kernel":
		if len(args) == 0 {
			return "", usage
		}
		x.kernel, err = x.fetch(ctx, StepKernel, args[0], options["name"], strings.Join(args[1:], " "))
		return "", err
	case "initrd", "imgfetch", "module":
		if len(args) == 0 {
			return "", usage
		}
		_, err = x.fetch(ctx, StepInitramfs, args[0], options["name"], strings.Join(args[1:], " "))
		return "", err
	case "imgargs":
		i := x.images[arg(0)]
		if i == nil {
			return "", failed
		}
		i.args = strings.Join(args[1:], " ")
	case "chain":
		if len(args) == 0 {
			return "", usage
		}
		if options["replace"] != "" {
			p, err := x.download(ctx, args[0])
			if err != nil {
				return "", err
			}
			return "", p
		}
		if x.depth++; x.depth > maxChain {
			return "", fault("", "iPXE: more than %d scripts chained", maxChain)
		}
		defer func() { x.depth-- }()
		return "", x.chain(ctx, args[0])
	case "boot":
		if len(args) > 0 {
			return "", x.chain(ctx, args[0])
		}
		return "", x.bootKernel()
	default:
		return "", fault("", "iPXE: %s: command not found", name)
	}
	return "", nil
}

// splitOptions takes the options that stand before the first argument. Only
// those with a value need to be known.
func splitOptions(command string, args []string) (map[string]string, []string) {
	valued := map[string]string{"-n": "name", "--name": "name", "-t": "timeout", "--timeout": "timeout"}
	if command == "ifconf" || command == "dhcp" {
		valued["-c"], valued["--configurator"] = "configurator", "configurator"
	}
	options := map[string]string{}
	for len(args) > 0 && strings.HasPrefix(args[0], "-") && command != "set" && command != "echo" {
		option := args[0]
		args = args[1:]
		if flag, value, ok := strings.Cut(option, "="); ok && valued[flag] != "" {
			options[valued[flag]] = value
		} else if valued[option] != "" && len(args) > 0 {
			options[valued[option]] = args[0]
			args = args[1:]
		} else if option == "--replace" || option == "-r" {
			options["replace"] = option
		}
	}
	return options, args
}
