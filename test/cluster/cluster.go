package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/keelson-project/keelson/test/parts"
)

// Options says what to start. The zero value is etcd and kube-apiserver.
type Options struct {
	// Dir is where everything lives. When empty it is a fresh temporary folder that Close removes.
	Dir string
	// Log receives progress for people; nil is silence.
	Log io.Writer
	// Calico starts Calico's API server, with its custom resources and the objects that its users expect (the default tier
	// and ClusterInformation). IstioCRDs installs Istio's custom resource definitions.
	Calico, IstioCRDs bool
	// Address is where kube-apiserver and Calico's API server listen; 127.0.0.1 when empty. Machines and pods of a whole
	// cluster (package fleet) reach them there.
	Address string
	// Controllers starts kube-controller-manager and kube-scheduler.
	Controllers bool
	// APIServerArgs are added to kube-apiserver's command line, after ours: the last of a repeated flag wins there.
	APIServerArgs []string
}

// loopback is where everything listens that nobody outside of this computer needs.
const loopback = "127.0.0.1"

// Cluster is a running Kubernetes API with what Options asked for.
type Cluster struct {
	opts   Options
	dir    string
	ownDir bool
	group  *Group
	ca     *authority // clients and servers of the Kubernetes API
	proxy  *authority // the aggregator's own client certificate, another CA as in kubeadm's clusters
	url    string
	admin  string // kubeconfig
	etcd   string // URL

	apiServer  Command
	apiProcess *Process
}

// Start starts a cluster and waits until it serves. On error nothing is left running.
func Start(ctx context.Context, o Options) (*Cluster, error) {
	if o.Log == nil {
		o.Log = io.Discard
	}
	if o.Address == "" {
		o.Address = loopback
	}
	c := &Cluster{opts: o, dir: o.Dir}
	if err := c.start(ctx); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// ForTest starts a cluster that ends with the test. A machine that cannot have the parts (no network for a first build) fails
// the test with the reason; `go test -short` skips it, and says so.
func ForTest(t *testing.T, o Options) *Cluster {
	t.Helper()
	if testing.Short() {
		t.Skip("needs a real kube-apiserver, which -short leaves out")
	}
	if o.Log == nil {
		o.Log = t.Output()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	c, err := Start(ctx, o)
	if err != nil {
		t.Fatalf("cluster: %v", err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("cluster: close: %v", err)
		}
	})
	return c
}

func (c *Cluster) start(ctx context.Context) error {
	if err := c.makeDir(); err != nil {
		return err
	}
	names := []string{"etcd", "kube-apiserver"}
	if c.opts.Controllers {
		names = append(names, "kube-controller-manager", "kube-scheduler")
	}
	if c.opts.Calico {
		names = append(names, "calico-apiserver")
	}
	paths, err := parts.Ensure(ctx, c.opts.Log, names...)
	if err != nil {
		return err
	}
	if err := c.startEtcd(ctx, paths["etcd"]); err != nil {
		return err
	}
	if err := c.startAPIServer(ctx, paths["kube-apiserver"]); err != nil {
		return err
	}
	if c.opts.Controllers {
		if err := c.startControllers(ctx, paths["kube-controller-manager"], paths["kube-scheduler"]); err != nil {
			return err
		}
	}
	if c.opts.IstioCRDs {
		if err := c.installIstioCRDs(ctx); err != nil {
			return err
		}
	}
	if c.opts.Calico {
		return c.startCalico(ctx, paths["calico-apiserver"])
	}
	return nil
}

func (c *Cluster) makeDir() error {
	if c.dir == "" {
		dir, err := os.MkdirTemp("", "klsn-")
		if err != nil {
			return fmt.Errorf("cluster: %w", err)
		}
		c.dir, c.ownDir = dir, true
	}
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return fmt.Errorf("cluster: %w", err)
	}
	c.group = NewGroup(c.dir)
	return nil
}

// Close ends every server and removes the folder that Start made.
func (c *Cluster) Close() error {
	var err error
	if c.group != nil {
		err = c.group.Close()
	}
	if c.ownDir {
		err = errors.Join(err, os.RemoveAll(c.dir))
	}
	return err
}

// Dir is the folder of this cluster's files and logs. Group starts further programs that end with the cluster.
func (c *Cluster) Dir() string { return c.dir }

// Group runs this cluster's processes; use it for programs that belong to the same run.
func (c *Cluster) Group() *Group { return c.group }

// URL is kube-apiserver's address.
func (c *Cluster) URL() string { return c.url }

// CA is the certificate, in PEM, of the authority under which kube-apiserver's certificate stands.
func (c *Cluster) CA() []byte { return c.ca.pem() }

// AdminKubeconfig is the path of a kubeconfig of group system:masters.
func (c *Cluster) AdminKubeconfig() string { return c.admin }

// RESTConfig returns the administrator's client configuration, without client-side throttling.
func (c *Cluster) RESTConfig() *rest.Config {
	cfg, err := c.RESTConfigFor("admin", "system:masters")
	if err != nil {
		// Only the system's random source can fail here, and crypto/rand ends the program by itself in that case.
		panic(err)
	}
	return cfg
}

// RESTConfigFor returns the client configuration of a user with groups, proved by a client certificate.
func (c *Cluster) RESTConfigFor(user string, groups ...string) (*rest.Config, error) {
	cert, key, err := c.ca.client(user, groups...)
	if err != nil {
		return nil, err
	}
	return &rest.Config{Host: c.url, QPS: -1, TLSClientConfig: rest.TLSClientConfig{
		CAData: c.ca.pem(), CertData: cert, KeyData: key,
	}}, nil
}

// KubeconfigFor writes a kubeconfig for a user with groups and returns its path.
func (c *Cluster) KubeconfigFor(user string, groups ...string) (string, error) {
	cert, key, err := c.ca.client(user, groups...)
	if err != nil {
		return "", err
	}
	cfg := clientcmdapi.NewConfig()
	cfg.Clusters["test"] = &clientcmdapi.Cluster{Server: c.url, CertificateAuthorityData: c.ca.pem()}
	cfg.AuthInfos[user] = &clientcmdapi.AuthInfo{ClientCertificateData: cert, ClientKeyData: key}
	cfg.Contexts["test"] = &clientcmdapi.Context{Cluster: "test", AuthInfo: user}
	cfg.CurrentContext = "test"
	f, err := os.CreateTemp(c.dir, "kubeconfig-*.yaml")
	if err != nil {
		return "", fmt.Errorf("cluster: %w", err)
	}
	path := f.Name()
	return path, errors.Join(f.Close(), clientcmd.WriteToFile(*cfg, path))
}

// ServerCertificate mints a serving certificate under the cluster's authority, for a kubelet say.
func (c *Cluster) ServerCertificate(names ...string) (cert, key []byte, err error) {
	return c.ca.server(names...)
}

// Ports that FreePort draws from: below those that a kernel gives to connections and listeners which do not care (Linux begins
// at 32768 unless told otherwise), so that nothing but another draw takes one before it is used.
const firstPort, lastPort = 15000, 30000

// FreePort returns a TCP port of 127.0.0.1 that nothing listens on. Another program may take it before it is used; servers
// that are started with it say so in their log and the start fails.
func FreePort() (int, error) {
	var last error
	for range 100 {
		port := firstPort + rand.IntN(lastPort-firstPort)
		l, err := net.Listen("tcp", net.JoinHostPort(loopback, strconv.Itoa(port)))
		if err != nil {
			last = err
			continue
		}
		return port, l.Close()
	}
	return 0, fmt.Errorf("cluster: free port: 100 of those between %d and %d are taken: %w", firstPort, lastPort, last)
}

func (c *Cluster) path(name string) string { return filepath.Join(c.dir, name) }
