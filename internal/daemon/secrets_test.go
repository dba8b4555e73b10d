package daemon

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"filippo.io/age"
	"github.com/rs/zerolog"
	"go.yaml.in/yaml/v4"

	"github.com/provisiond/provisiond/internal/boltstore"
	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/racktest"
	"github.com/provisiond/provisiond/internal/sealed"
)

// finder knows secrets, each in every form that it could be written down in.
type finder struct {
	forms map[string]string // a form → whose it is
}

// shortest is what counts as a secret: anything shorter is found by chance.
const shortest = 12

func (f *finder) add(name string, secret []byte) {
	if len(secret) < shortest {
		return
	}
	if f.forms == nil {
		f.forms = map[string]string{}
	}
	quoted, _ := json.Marshal(string(secret)) // any text is JSON
	f.forms[strings.Trim(string(quoted), `"`)] = name + " in JSON"
	f.forms[string(secret)] = name
	f.forms[hex.EncodeToString(secret)] = name + " in hexadecimal"
	f.forms[strings.ToUpper(hex.EncodeToString(secret))] = name + " in hexadecimal"
	// In base64 as a part of something longer, it depends on where it begins.
	for before := range 3 {
		text := base64.RawStdEncoding.EncodeToString(append(make([]byte, before), secret...))
		text = text[(before*8+5)/6 : len(text)-2]
		f.forms[text] = name + " in base64"
		f.forms[strings.NewReplacer("+", "-", "/", "_").Replace(text)] = name + " in base64 of URLs"
	}
}

// addText adds a secret, what it is in base64 of, and each line of a key in PEM.
func (f *finder) addText(name, text string) {
	f.add(name, []byte(text))
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return
	}
	f.add(name+", decoded", raw)
	block, _ := pem.Decode(raw)
	if block == nil {
		return
	}
	f.add(name+", its octets", block.Bytes)
	if len(block.Bytes) >= 32 { // where an Ed25519 key has its seed, and the others the end of a prime
		f.add(name+", the last of its octets", block.Bytes[len(block.Bytes)-32:])
	}
	for i, line := range strings.Split(string(raw), "\n") {
		if line != "" && !strings.HasPrefix(line, "-----") {
			f.add(fmt.Sprintf("%s, line %d", name, i), []byte(line))
		}
	}
}

// addYAML adds every text in a document that is not on the list of what is public.
func (f *finder) addYAML(name string, text []byte, public ...string) error {
	var root yaml.Node
	if err := yaml.Unmarshal(text, &root); err != nil {
		return err
	}
	var walk func(path string, n *yaml.Node)
	walk = func(path string, n *yaml.Node) {
		switch n.Kind {
		case yaml.MappingNode:
			for i := 0; i+1 < len(n.Content); i += 2 {
				if key := n.Content[i].Value; !slices.Contains(public, key) {
					walk(path+"."+key, n.Content[i+1])
				}
			}
		case yaml.ScalarNode:
			f.addText(path, n.Value)
		default:
			for _, c := range n.Content {
				walk(path, c)
			}
		}
	}
	walk(name, &root)
	return nil
}

// in says which secrets are in something that was written.
func (f *finder) in(written []byte) (found []string) {
	for form, name := range f.forms {
		if bytes.Contains(written, []byte(form)) {
			found = append(found, name)
		}
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// TestSecretsStayInside runs a rack from power-on to a cluster, with all the daemon
// has to say, and asks the API everything; then it looks through all that was written
// for every secret that was made.
func TestSecretsStayInside(t *testing.T) {
	l, traces := traced(t)
	l.cfg.Listen = netip.MustParseAddrPort("[::1]:0")
	var said bytes.Buffer
	d, err := New(t.Context(), Options{Config: l.cfg, Log: zerolog.New(zerolog.SyncWriter(&said)).Level(zerolog.TraceLevel)})
	check(t, err)
	ctx, stop := context.WithCancel(context.Background())
	stopped := make(chan error, 1)
	go func() { stopped <- d.Run(ctx) }()
	defer stop()
	r := l.rack(t, racktest.RackOptions{})
	proxied(t, func(ctx context.Context) error { return r.Fabric.ServeProxy(ctx, l.proxy) })
	runRack(t, r)
	verify(t, d.keeper, r)
	l.checkLogs(t, d.keeper)
	traces.await(t, "boot", planes+workers)

	const typed = "hunter2-hunter2-hunter2" // what an operator types where it does not belong
	var secrets finder
	secrets.add("what was typed", []byte(typed))
	secrets.add("what the collector of traces is told", []byte("collectors-only"))
	made, err := bundle()
	check(t, err)
	// Certificates and the cluster's id are in every config that is shown; so are the
	// words for what a bundle has.
	check(t, secrets.addYAML("bundle", made, "crt", "id"))
	views, err := d.keeper.Machines(t.Context(), "", 0)
	check(t, err)
	for _, v := range views {
		for _, b := range v.Facts.Boots {
			secrets.add(fmt.Sprintf("token of boot %d of %s", b.Number, v.Machine.Name), []byte(b.Token))
		}
	}
	if n := len(secrets.forms); n < 300 {
		t.Errorf("only %d forms of secrets are looked for", n)
	}

	_, token, err := d.keeper.CreateToken(t.Context(), inventory.Token{Name: "reader", Access: inventory.AccessRead})
	check(t, err)
	secrets.add("the token of an operator", []byte(token))
	api := newAsker(t, d, token)
	written := api.everything(views)
	root := api.socket
	for _, ask := range []struct{ method, path, body string }{
		{"PATCH", "/api/v1/clusters/lab", `{"patches": ["machine: {token: [` + typed + `]}"]}`},
		{"PATCH", "/api/v1/clusters/lab", `{"patches": ["machine: {secret: ` + typed + `}"]}`},
		{"PATCH", "/api/v1/machines/w-1", `{"patches": ["` + typed + `: [", "cluster: {secret: ` + typed + `}"]}`},
		{"PATCH", "/api/v1/machines/w-1", `{"patches": "` + typed + `"}`},
		{"PATCH", "/api/v1/machines/w-1", `{"patches": ["machine: {install: {wipe: ` + typed + `}}"]}`},
		{"POST", "/api/v1/clusters/import", `{"name": "other", "secrets": "cluster: {id: x, secret: ` + typed + `}\nsecrets: {bootstraptoken: ` + typed + `}\ntrustdinfo: {token: ` + typed + `}\ncerts: {etcd: {key: ` + typed + `}}\n"}`},
		{"POST", "/api/v1/clusters/import", `{"name": "other", "secrets": "` + typed + `: ["}`},
		{"POST", "/api/v1/clusters/import", `{"name": "other", "secrets": ` + typed + `}`},
		{"POST", "/api/v1/apply", `{"clusters": [{"name": "lab", "patches": ["machine: {token: [` + typed + `]}"]}]}`},
	} {
		status, answer := root.ask(ask.method, ask.path, ask.body)
		if status < 400 || status >= 500 {
			t.Errorf("%s %s %s: %d %s", ask.method, ask.path, ask.body, status, answer)
		}
		written[fmt.Sprintf("answer to %s %s %s", ask.method, ask.path, ask.body)] = answer
		if ask.method == "PATCH" {
			status, answer := root.ask("POST", ask.path+"/check", ask.body)
			if status != http.StatusOK || !bytes.Contains(answer, []byte(`"ok":false`)) {
				t.Errorf("check of %s: %d %s", ask.body, status, answer)
			}
			written["check of "+ask.path+" "+ask.body] = answer
		}
	}
	// What is only checked is nobody's config.
	status, answer := root.ask("POST", "/api/v1/machines/w-1/check", `{"patches": ["machine: {sysctls: {who: w-1}, env: {TOKEN: `+typed+`}}"]}`)
	if status != http.StatusOK || !bytes.Contains(answer, []byte(`\n+        who: w-1\n`)) {
		t.Errorf("check of a good patch: %d %s", status, answer)
	}
	written["check of a good patch"] = answer
	if _, answer = root.ask("GET", "/api/v1/machines/w-1/config", ""); bytes.Contains(answer, []byte("who: w-1")) {
		t.Error("what was only checked is in its config")
	}
	for _, path := range []string{"/config/" + string(views[0].Machine.MACs[0]) + "/wrong", "/config/" + string(views[0].Machine.MACs[0]) + "/" + views[1].Facts.Boots[0].Token + "x"} {
		boot := asker{t, &http.Client{}, "http://" + d.Addrs().HTTP.String(), ""}
		status, answer := boot.ask("GET", path, "")
		if status < 400 {
			t.Errorf("GET %s: %d", path, status)
		}
		written["answer to GET "+path] = answer
	}
	// The answers that are secrets; they are nowhere else, and in no log.
	for _, path := range []string{"clusters/lab/talosconfig", "clusters/lab/kubeconfig"} {
		status, answer := root.ask("GET", "/api/v1/"+path, "")
		if status != http.StatusOK || len(secrets.in(answer)) > 0 {
			t.Errorf("GET %s: %d, with the secrets %v", path, status, secrets.in(answer))
		}
		check(t, secrets.addYAML(path, answer, "ca", "crt", "certificate-authority-data", "client-certificate-data", "endpoints", "server", "name", "user", "cluster", "context", "current-context", "namespace"))
	}
	status, withSecrets := root.ask("GET", "/api/v1/machines/cp-1/config?secrets=true", "")
	if found := secrets.in(withSecrets); status != http.StatusOK || len(found) < 10 {
		t.Errorf("a config with its secrets: %d, with %v only", status, found)
	}
	status, backup := root.ask("GET", "/api/v1/backup", "")
	if status != http.StatusOK {
		t.Errorf("backup: %d", status)
	}
	written["backup"] = backup
	for name, text := range api.everything(views) { // with events of all that was done
		written[name+", later"] = text
	}

	plain := plainCopy(t, l.cfg, d)
	stop()
	check(t, <-stopped)
	l.addKeys(t, &secrets)
	// Another key, and another start with it.
	next := filepath.Join(t.TempDir(), "next")
	to, err := NewKeyFile(next)
	check(t, err)
	_, err = Rotate(t.Context(), l.cfg, to)
	check(t, err)
	former := l.cfg.Key
	l.cfg.Key = next
	l.addKeys(t, &secrets)
	d, err = New(t.Context(), Options{Config: l.cfg, Log: zerolog.New(&said).Level(zerolog.TraceLevel)})
	check(t, err)
	check(t, d.close())
	written["log"], written["traces"] = said.Bytes(), traces.all()
	check(t, filepath.WalkDir(l.dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || path == former {
			return err
		}
		text, err := os.ReadFile(path)
		written[path] = text
		return err
	}))
	for _, want := range []string{"log", "traces", "backup", l.cfg.Database(), filepath.Join(l.cfg.Data, "logs", "cp-1.log"), "socket /api/v1/events", "TCP /api/v1/machines/cp-1/config", "TCP /openapi.json", "TCP /metrics"} {
		if len(written[want]) < 1000 {
			t.Errorf("%s is not looked through: %d octets; there are %v", want, len(written[want]), slices.Sorted(maps.Keys(written)))
		}
	}
	for name, text := range written {
		if found := secrets.in(text); len(found) > 0 {
			t.Errorf("%s tells secrets: %v", name, found)
		}
	}

	t.Run("they would be found", func(t *testing.T) {
		// The same database, as it is beneath the seal.
		found := secrets.in(plain)
		for _, want := range []string{"bundle.certs.os.key", "bundle.secrets.bootstraptoken", "bundle.trustdinfo.token", "token of boot 1 of cp-1"} {
			if !slices.ContainsFunc(found, func(s string) bool { return strings.HasPrefix(s, want) }) {
				t.Errorf("%s is not found in a database that is not sealed", want)
			}
		}
		for form, name := range secrets.forms {
			if !slices.Contains(secrets.in([]byte(`{"message":"x`+form+`y"}`)), name) {
				t.Errorf("%s is not found when it is written as %q", name, form)
			}
		}
	})
}

// plainCopy is a daemon's database as it would be on the disk if nothing sealed it.
func plainCopy(t *testing.T, cfg *Config, d *Daemon) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "plain")
	raw, err := boltstore.Open(path, boltstore.Options{})
	check(t, err)
	key, err := ReadKey(cfg.Key)
	check(t, err)
	from := filepath.Join(t.TempDir(), "sealed")
	f, err := os.Create(from)
	check(t, err)
	check(t, d.keeper.Backup(t.Context(), f))
	check(t, f.Close())
	source, err := boltstore.Open(from, boltstore.Options{ReadOnly: true})
	check(t, err)
	opened, err := sealed.Open(t.Context(), source, key)
	check(t, err)
	var c inventory.Commit
	for _, b := range inventory.Buckets() {
		if b == inventory.BucketKeyring {
			continue
		}
		recs, err := opened.List(t.Context(), b, "", 0)
		check(t, err)
		for _, rec := range recs {
			c.Writes = append(c.Writes, inventory.Write{Key: rec.Key, Value: rec.Value})
		}
	}
	_, _, err = raw.Commit(t.Context(), c)
	check(t, err)
	check(t, raw.Close())
	check(t, opened.Close())
	text, err := os.ReadFile(path)
	check(t, err)
	return text
}

// addKeys adds the operator's key and the data key.
func (l *lab) addKeys(t *testing.T, f *finder) {
	t.Helper()
	text, err := os.ReadFile(l.cfg.Key)
	check(t, err)
	_, secret, _ := strings.Cut(string(text), "AGE-SECRET-KEY-1")
	secret = strings.TrimSpace(secret)
	f.add("operator's key", []byte(secret))
	f.add("operator's key, in small letters", []byte(strings.ToLower(secret)))
	identity, err := age.ParseX25519Identity("AGE-SECRET-KEY-1" + secret)
	check(t, err)
	raw, err := boltstore.Open(l.cfg.Database(), boltstore.Options{ReadOnly: true})
	check(t, err)
	defer raw.Close()
	rec, err := raw.Get(t.Context(), inventory.Key{Bucket: inventory.BucketKeyring, ID: "keyring"})
	check(t, err)
	var ring struct {
		DataKey []byte `json:"dataKey"`
	}
	check(t, json.Unmarshal(rec.Value, &ring))
	data, err := age.Decrypt(bytes.NewReader(ring.DataKey), identity)
	check(t, err)
	key, err := io.ReadAll(data)
	check(t, err)
	if len(key) != 32 {
		t.Fatalf("a data key of %d octets", len(key))
	}
	f.add("data key", key)
}

// asker asks an API.
type asker struct {
	t      *testing.T
	client *http.Client
	base   string
	token  string // of the login; empty: none
}

func (a asker) ask(method, path, body string) (int, []byte) {
	a.t.Helper()
	req, err := http.NewRequestWithContext(a.t.Context(), method, a.base+path, strings.NewReader(body))
	check(a.t, err)
	req.Header.Set("Content-Type", "application/json")
	if a.token != "" {
		req.Header.Set("Authorization", "Bearer "+a.token)
	}
	res, err := a.client.Do(req)
	check(a.t, err)
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	check(a.t, err)
	return res.StatusCode, answer
}

// askers ask the API as root, who may everything, and over TCP as one who only reads.
type askers struct{ socket, tcp asker }

func newAsker(t *testing.T, d *Daemon, token string) askers {
	t.Helper()
	unix := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var dialer net.Dialer
		return dialer.DialContext(ctx, "unix", d.Addrs().Socket)
	}}
	authority, err := ownCA(t.Context(), d.keeper)
	check(t, err)
	tcp := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: authority.Pool()}}
	t.Cleanup(unix.CloseIdleConnections)
	t.Cleanup(tcp.CloseIdleConnections)
	return askers{asker{t, &http.Client{Transport: unix}, "http://provisiond", ""}, asker{t, &http.Client{Transport: tcp}, "https://" + d.Addrs().API.String(), token}}
}

// everything is the answer to each GET of the API's document, about each machine, but
// for those which are secrets where root asks.
func (a askers) everything(views []inventory.View) map[string][]byte {
	a.tcp.t.Helper()
	out := map[string][]byte{}
	_, text := a.tcp.ask("GET", "/openapi.json", "")
	out["TCP /openapi.json"] = text
	var doc struct {
		Paths map[string]map[string]any `json:"paths"`
	}
	check(a.tcp.t, json.Unmarshal(text, &doc))
	for template, operations := range doc.Paths {
		if operations["get"] == nil || strings.HasSuffix(template, "/watch") { // which does not end, and tells what the list does
			continue
		}
		for _, v := range views {
			path := strings.NewReplacer("{machine}", v.Machine.Name, "{cluster}", "lab", "{version}", "v1.13.6", "{schematic}", "default", "{arch}", "amd64", "{subnet}", "rack1").Replace(template)
			_, out["TCP "+path] = a.tcp.ask("GET", path, "")
			if !slices.Contains([]string{"backup", "talosconfig", "kubeconfig"}, filepath.Base(path)) {
				_, out["socket "+path] = a.socket.ask("GET", path, "")
			}
			if strings.HasSuffix(path, "/diff") {
				_, out["socket "+path+" running"] = a.socket.ask("GET", path+"?running=true", "")
			}
			if template == path {
				break
			}
		}
	}
	return out
}
