package plugintest_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keelson-project/keelson/nodeattestor/audit"
	"github.com/keelson-project/keelson/test/tpmtest"
)

func TestThreat21_WithoutKubernetesAnOlderTagIsRefusedToo(t *testing.T) {
	ca, key := must2(tpmtest.NewCA())(t), newTagKey(t)
	m := newMachine(t, ca, "good")
	tag := fmt.Sprintf("tag_document = %q\n", m.file("tag.json"))
	newer, older := key.tag(t, m.ekHex, 2, "DE"), key.tag(t, m.ekHex, 1, "FR")
	m.provision(t, newer)
	m.serve(t, tag)
	options := serverOptions{ca: ca, reference: m.capture(t, "good"), tagSigner: key.pem, kubernetes: "\n", stateDir: t.TempDir()}
	first := newServer(t, options)
	_, err := attest(t, m, first, nil)
	check(t, err)

	m.provision(t, older)
	_, err = attest(t, m, first, nil)
	refused(t, first, err, audit.Untrusted, "tag.serial")
	check(t, first.configure(t, options))
	_, err = attest(t, m, first, nil)
	refused(t, first, err, audit.Untrusted, "tag.serial")

	second := newServer(t, options) // the server after a restart
	_, err = attest(t, m, second, nil)
	refused(t, second, err, audit.Untrusted, "tag.serial")
	other := *m
	other.serve(t, tag+"ek_template = \"L-1\"\n")
	_, err = attest(t, &other, second, nil)
	refused(t, second, err, audit.Untrusted, "tag.serial") // the machine's other EK has shown no tag yet
	m.provision(t, newer)
	_, err = attest(t, m, second, nil)
	check(t, err)

	m.provision(t, key.tag(t, m.ekHex, 3, "DE"))
	check(t, os.Rename(options.stateDir, options.stateDir+".away"))
	_, err = attest(t, m, second, nil)
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "cannot keep the verdict") {
		t.Errorf("a tag whose serial cannot be kept: %v", err)
	}
	check(t, os.Rename(options.stateDir+".away", options.stateDir))
	_, err = attest(t, m, second, nil)
	check(t, err)
	whole(t, second.file("audit.jsonl"))
}
