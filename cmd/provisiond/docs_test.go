package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// words splits a command line as a shell would, as far as documents need it: up to a
// redirection, another command or a comment.
func words(line string) (all []string) {
	word, quoted, begun := "", false, false
	end := func() {
		if begun {
			all = append(all, word)
		}
		word, begun = "", false
	}
	for i, r := range line {
		switch {
		case r == '\'':
			quoted, begun = !quoted, true
		case !quoted && r == ' ':
			end()
		case !quoted && strings.ContainsRune("|&;>", r), !quoted && !begun && r == '#' && i > 0:
			end()
			return all
		default:
			word, begun = word+string(r), true
		}
	}
	end()
	return all
}

// checkLine says what is wrong with a command line. whole is false for one that is only
// spoken of, where arguments may be left out.
func checkLine(line string, whole bool) error {
	root := newRoot()
	root.InitDefaultCompletionCmd()
	cmd, rest, err := root.Find(words(line)[1:])
	if err != nil {
		return err
	}
	if cmd.HasSubCommands() && len(rest) > 0 && !strings.HasPrefix(rest[0], "-") {
		return fmt.Errorf("%s has no command %s", cmd.CommandPath(), rest[0])
	}
	cmd.InitDefaultHelpFlag()
	if err := cmd.ParseFlags(rest); err != nil {
		return err
	}
	if !whole {
		return nil
	}
	if err := cmd.ValidateArgs(cmd.Flags().Args()); err != nil {
		return err
	}
	return cmd.ValidateRequiredFlags()
}

// TestDocs: the commands of the documents are commands, with the flags that they show.
func TestDocs(t *testing.T) {
	root := os.DirFS("../..")
	pages := []string{"README.md"}
	err := fs.WalkDir(root, "docs", func(path string, _ fs.DirEntry, err error) error {
		if filepath.Ext(path) == ".md" {
			pages = append(pages, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	shown := regexp.MustCompile(`(?m)^(?:[$#] |[A-Z_]+=\S+ )?(provisiond .*)$`)
	spoken := regexp.MustCompile("`(provisiond [a-z][^`…]*)")
	fences := regexp.MustCompile("(?ms)^```(console|sh)\n(.*?)^```$")
	checked := 0
	for _, page := range pages {
		b, err := fs.ReadFile(root, page)
		if err != nil {
			t.Fatal(err)
		}
		text := strings.ReplaceAll(string(b), "\\\n", " ")
		for _, block := range fences.FindAllStringSubmatch(text, -1) {
			for _, line := range shown.FindAllStringSubmatch(block[2], -1) {
				checked++
				if err := checkLine(line[1], true); err != nil {
					t.Errorf("%s: %s: %v", page, line[1], err)
				}
			}
		}
		for _, line := range spoken.FindAllStringSubmatch(fences.ReplaceAllString(text, ""), -1) {
			checked++
			if err := checkLine(line[1], false); err != nil {
				t.Errorf("%s: %s: %v", page, line[1], err)
			}
		}
	}
	if checked < 50 {
		t.Errorf("%d commands", checked)
	}
	for line, ok := range map[string]bool{
		"provisiond machine add a --mac 'x y' --role worker # or so": true, "provisiond machine add a --mac x": false, "provisiond machine ad": false,
		"provisiond machine list --no": false, "provisiond machine list x": false, "provisiond ca >ca.pem": true,
	} {
		if err := checkLine(line, true); (err == nil) != ok {
			t.Errorf("%s: %v", line, err)
		}
	}
}
