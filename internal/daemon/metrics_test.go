package daemon

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
	"go.yaml.in/yaml/v4"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/racktest"
	"github.com/provisiond/provisiond/internal/tracing"
)

var update = flag.Bool("update", false, "write docs/metrics.md anew")

const metricsDoc = "../../docs/metrics.md"

// gather is all that a daemon counts, by name.
func gather(t *testing.T, d *Daemon) map[string]*dto.MetricFamily {
	t.Helper()
	families, err := d.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	byName := map[string]*dto.MetricFamily{}
	for _, f := range families {
		byName[f.GetName()] = f
	}
	return byName
}

// seriesOf lists our own series, without what they count.
func seriesOf(families map[string]*dto.MetricFamily) (all []string) {
	for name, f := range families {
		if !strings.HasPrefix(name, "provisiond_") {
			continue
		}
		for _, m := range f.GetMetric() {
			all = append(all, fmt.Sprint(name, labelsOf(m)))
		}
	}
	slices.Sort(all)
	return all
}

func labelsOf(m *dto.Metric) (pairs []string) {
	for _, l := range m.GetLabel() {
		pairs = append(pairs, l.GetName()+"="+l.GetValue())
	}
	return pairs
}

// value is that of the series with these label values, however they are named.
func value(families map[string]*dto.MetricFamily, name string, values ...string) float64 {
	for _, m := range families[name].GetMetric() {
		var have []string
		for _, l := range m.GetLabel() {
			have = append(have, l.GetValue())
		}
		if slices.Sort(have); slices.Equal(have, slices.Sorted(slices.Values(values))) {
			return m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return -1
}

// TestMetrics boots a rack and reads its numbers as Prometheus does.
func TestMetrics(t *testing.T) {
	l := newLab(t)
	l.cfg.Listen = netip.MustParseAddrPort("[::1]:0")
	l.cfg.Tracing = &tracing.Config{Endpoint: "http://[::1]:1"} // where nobody listens
	_, stop := l.start(t, nil)
	before := seriesOf(gather(t, l.daemon))
	stop()

	r := l.rack(t, racktest.RackOptions{Firmware: racktest.PXE})
	proxied(t, func(ctx context.Context) error { return r.Fabric.ServeProxy(ctx, l.proxy) })
	k, _ := l.start(t, nil)
	runRack(t, r)
	awaitRack(t, k, r)
	const many = 495
	for i := range many { // that nobody has switched on
		_, err := k.PutMachine(t.Context(), &inventory.Machine{Name: fmt.Sprintf("x-%d", i), Cluster: "lab", Role: inventory.Worker,
			MACs: []inventory.MAC{inventory.MAC(fmt.Sprintf("52:54:00:01:%02x:%02x", i>>8, i&255))}, Address: netip.MustParseAddr(fmt.Sprintf("2001:db8:1::2:%x", i))}, 0)
		if err != nil {
			t.Fatal(err)
		}
	}
	got := gather(t, l.daemon)
	if after := seriesOf(got); !slices.Equal(before, after) {
		t.Errorf("series come and go with machines:\n%s\nthen\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
	for _, want := range []struct {
		n      float64
		name   string
		labels []string
	}{
		{planes + workers, "provisiond_machines", []string{"lab", "ready"}},
		{many, "provisiond_machines", []string{"lab", "registered"}},
		{0, "provisiond_machine_alarms", []string{"lab"}},
		{0, "provisiond_reimages_outstanding", []string{"lab"}},
		{1, "provisiond_bootstrap_state", []string{"lab", "done"}},
		{1, "provisiond_bootstrap_calls_total", []string{"accepted"}},
		{planes + workers, "provisiond_config_grants_total", nil},
		{planes + workers, "provisiond_http_transfers_total", []string{"config", "complete"}},
		{planes + workers, "provisiond_http_transfers_total", []string{"kernel", "complete"}},
		{planes + workers, "provisiond_http_transfers_total", []string{"initramfs", "complete"}},
		{planes + workers, "provisiond_http_transfer_duration_seconds", []string{"kernel"}},
		{planes + workers, "provisiond_tftp_transfers_total", []string{"loader", "complete"}},
		{0, "provisiond_tftp_transfers_total", []string{"loader", "refused"}},
		{0, "provisiond_config_requests_held", nil},
		{256, "provisiond_dhcpv6_pool_addresses", []string{"rack1"}},
		{0, "provisiond_dhcpv6_dropped_total", []string{"queue full"}},
		{0, "provisiond_store_commit_duration_seconds", []string{"failed"}},
		{0, "provisiond_audit_lost_total", nil},
		{0, "provisiond_census_failures_total", nil},
	} {
		if n := value(got, want.name, want.labels...); n != want.n {
			t.Errorf("%s%v is %v, want %v", want.name, want.labels, n, want.n)
		}
	}
	for _, some := range []struct {
		name   string
		labels []string
	}{
		{"provisiond_dhcpv6_messages_total", []string{"solicit", "advertise"}}, {"provisiond_dhcpv6_messages_total", []string{"request", "reply"}},
		{"provisiond_tftp_sent_bytes_total", []string{"loader"}}, {"provisiond_http_sent_bytes_total", []string{"config"}},
		{"provisiond_store_commit_duration_seconds", []string{"written"}}, {"provisiond_store_size_bytes", nil}, {"provisiond_data_free_bytes", nil},
		{"provisiond_render_duration_seconds", []string{"rendered"}}, {"provisiond_monitor_probes_total", []string{"ready"}},
		{"provisiond_eventsink_events_total", []string{"taken"}}, {"provisiond_kernellog_lines_total", nil}, {"provisiond_audit_lines_total", nil},
		{"provisiond_certificate_expiry_timestamp_seconds", []string{"ca"}}, {"go_goroutines", nil}, {"process_resident_memory_bytes", nil},
	} {
		if n := value(got, some.name, some.labels...); n <= 0 {
			t.Errorf("%s%v is %v", some.name, some.labels, n)
		}
	}
	if problems, err := testutil.GatherAndLint(l.daemon.metrics); err != nil || len(problems) > 0 {
		t.Error(problems, err)
	}
	t.Run("who may read them", func(t *testing.T) { readMetrics(t, l) })
	t.Run("docs", func(t *testing.T) { wantDocumented(t, got) })
	t.Run("alerts and dashboard", func(t *testing.T) { wantUsable(t, got) })
}

// readMetrics asks as root, as nobody, and with tokens.
func readMetrics(t *testing.T, l *lab) {
	ask := func(tr *http.Transport, token, method, url, body, accept string) (int, string, string) {
		t.Helper()
		defer tr.CloseIdleConnections()
		req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		req.Header.Set("Accept", accept)
		resp, err := (&http.Client{Transport: tr}).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, resp.Header.Get("Content-Type"), string(b)
	}
	socket := func() *http.Transport {
		return &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", l.cfg.Socket)
		}}
	}
	token := func(spec string) string {
		t.Helper()
		code, _, b := ask(socket(), "", "POST", "http://provisiond/api/v1/tokens", spec, "")
		var made api.NewToken
		if err := json.Unmarshal([]byte(b), &made); err != nil || code != 201 {
			t.Fatalf("%d %s", code, b)
		}
		return made.Text
	}
	_, _, pem := ask(socket(), "", "GET", "http://provisiond/ca.pem", "", "")
	trust := x509.NewCertPool()
	trust.AppendCertsFromPEM([]byte(pem))
	secure := func() *http.Transport { return &http.Transport{TLSClientConfig: &tls.Config{RootCAs: trust}} }
	url := "https://" + l.daemon.Addrs().API.String() + "/metrics"
	for who, c := range map[string]struct {
		token string
		want  int
	}{
		"nobody":                {"", 401},
		"who reads":             {token(`{"name":"prometheus","role":"read"}`), 200},
		"who is limited":        {token(`{"name":"lab","role":"read","clusters":["lab"]}`), 403},
		"an admin of a cluster": {token(`{"name":"chief","role":"admin","clusters":["lab"]}`), 403},
	} {
		if code, _, b := ask(secure(), c.token, "GET", url, "", ""); code != c.want || strings.Contains(b, "provisiond_machines") != (code == 200) {
			t.Errorf("%s: %d %.200s", who, code, b)
		}
	}
	for accept, want := range map[string]string{
		"": "text/plain; version=0.0.4", "application/openmetrics-text;version=1.0.0": "application/openmetrics-text; version=1.0.0",
	} {
		code, kind, body := ask(socket(), "", "GET", "http://provisiond/metrics", "", accept)
		if code != 200 || !strings.HasPrefix(kind, want) || strings.HasSuffix(body, "# EOF\n") != (accept != "") {
			t.Errorf("%q is answered with %d %s", accept, code, kind)
		}
		for _, name := range []string{"cp-1", "52:54:00", "2001:db8", "::1", "prometheus_token", "uid "} {
			if strings.Contains(body, `"`+name) {
				t.Errorf("a label names %s", name)
			}
		}
	}
}

// wantDocumented holds docs/metrics.md to what there is.
func wantDocumented(t *testing.T, families map[string]*dto.MetricFamily) {
	var table strings.Builder
	table.WriteString("| name | type | labels | meaning |\n|---|---|---|---|\n")
	for _, name := range slices.Sorted(maps.Keys(families)) {
		f := families[name]
		if !strings.HasPrefix(name, "provisiond_") {
			continue
		}
		var labels []string
		values := map[string][]string{}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if values[l.GetName()] == nil {
					labels = append(labels, l.GetName())
				}
				if !slices.Contains(values[l.GetName()], l.GetValue()) {
					values[l.GetName()] = append(values[l.GetName()], l.GetValue())
				}
			}
		}
		var cells []string
		for _, l := range labels {
			if slices.Contains([]string{"cluster", "subnet", "version", "goversion"}, l) {
				cells = append(cells, "`"+l+"`")
			} else {
				slices.Sort(values[l])
				cells = append(cells, "`"+l+"`: "+strings.Join(values[l], ", "))
			}
		}
		fmt.Fprintf(&table, "| `%s` | %s | %s | %s |\n", name, strings.ToLower(f.GetType().String()), strings.Join(cells, "; "), f.GetHelp())
	}
	text, err := os.ReadFile(metricsDoc)
	if err != nil {
		t.Fatal(err)
	}
	const heading = "## All of them\n\n"
	head, have, ok := strings.Cut(string(text), heading)
	if !ok {
		t.Fatalf("%s has no %q", metricsDoc, heading)
	}
	if *update {
		if err := os.WriteFile(metricsDoc, []byte(head+heading+table.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if have != table.String() {
		t.Errorf("%s is not what there is: go test ./internal/daemon -run TestMetrics -update\n%s", metricsDoc, table.String())
	}
}

// wantUsable checks that alerts and dashboard use metrics that exist.
func wantUsable(t *testing.T, families map[string]*dto.MetricFamily) {
	exists := map[string]bool{}
	for name, f := range families {
		if exists[name] = true; f.GetType() == dto.MetricType_HISTOGRAM {
			delete(exists, name)
			for _, part := range []string{"_bucket", "_sum", "_count"} {
				exists[name+part] = true
			}
		}
	}
	used := map[string]bool{}
	check := func(where, expr string) {
		names := metricNames.FindAllString(expr, -1)
		if len(names) == 0 && !strings.HasPrefix(expr, "up{") {
			t.Errorf("%s uses no metric: %s", where, expr)
		}
		for _, name := range names {
			if used[name] = true; !exists[name] {
				t.Errorf("%s uses %s, which there is not", where, name)
			}
		}
	}

	var rules struct {
		Groups []struct {
			Rules []struct {
				Alert, Expr string
				Annotations struct{ Summary, Description string }
			}
		}
	}
	const alerts = "../../deploy/prometheus/alerts.yml"
	text, err := os.ReadFile(alerts)
	if err == nil {
		err = yaml.Unmarshal(text, &rules)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			check("the alert "+r.Alert, r.Expr)
			if r.Annotations.Summary == "" || r.Annotations.Description == "" {
				t.Errorf("%s does not say what to do", r.Alert)
			}
		}
	}

	var board struct {
		Panels []struct {
			Title, Type string
			Targets     []struct{ Expr string }
		}
	}
	text, err = os.ReadFile("../../deploy/grafana/provisiond.json")
	if err == nil {
		err = json.Unmarshal(text, &board)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range board.Panels {
		if len(p.Targets) == 0 && p.Type != "row" {
			t.Errorf("the panel %q shows nothing", p.Title)
		}
		for _, target := range p.Targets {
			check("the panel "+p.Title, target.Expr)
		}
	}
	for name := range exists { // what is counted is worth a look
		base := strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(name, "_bucket"), "_sum"), "_count")
		if strings.HasPrefix(name, "provisiond_") && !used[name] && !used[base+"_bucket"] && !used[base+"_count"] {
			t.Errorf("neither alerts nor dashboard use %s", name)
		}
	}
}

var metricNames = regexp.MustCompile(`\b(?:provisiond|process|go)_[a-z0-9_]+\b`)

// TestAlertRules has Prometheus' own tool check the rules, and what they would say.
func TestAlertRules(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("CI has promtool: Debian's package prometheus")
		}
		t.Skip("LEFT OUT: promtool checks the alerts (Debian's package prometheus)")
	}
	for _, args := range [][]string{{"check", "rules", "../../deploy/prometheus/alerts.yml"}, {"test", "rules", "testdata/alerts_test.yml"}} {
		if out, err := exec.CommandContext(t.Context(), promtool, args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}
