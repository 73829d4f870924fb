package cluster

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/http"
	"os"
	"syscall"
	"time"

	"k8s.io/client-go/kubernetes"
)

// startEtcd starts etcd without a write barrier per commit: the data die with the run.
func (c *Cluster) startEtcd(ctx context.Context, path string) error {
	client, err := FreePort()
	if err != nil {
		return err
	}
	peer, err := FreePort()
	if err != nil {
		return err
	}
	c.etcd = fmt.Sprintf("http://127.0.0.1:%d", client)
	peerURL := fmt.Sprintf("http://127.0.0.1:%d", peer)
	p, err := c.group.Start(Command{Name: "etcd", Path: path, Args: []string{
		"--data-dir", c.path("etcd"), "--unsafe-no-fsync", "--log-level", "warn",
		"--listen-client-urls", c.etcd, "--advertise-client-urls", c.etcd,
		"--listen-peer-urls", peerURL, "--initial-advertise-peer-urls", peerURL, "--initial-cluster", "default=" + peerURL,
	}})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return p.Until(ctx, func(ctx context.Context) error { return Get(ctx, c.etcd+"/health") })
}

// Get asks a server whether it is well: an answer other than 200 is an error.
func Get(ctx context.Context, url string) error { return getWith(ctx, http.DefaultClient, url) }

// getInsecure is get for a server on this computer that signs its own certificate.
func getInsecure(ctx context.Context, url string) error {
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}} // #nosec G402 -- it only tells whether the server is up
	defer transport.CloseIdleConnections()
	return getWith(ctx, &http.Client{Transport: transport}, url)
}

func getWith(ctx context.Context, client *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return fmt.Errorf("cluster: %w", err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("cluster: %w", err)
	}
	if err := resp.Body.Close(); err != nil {
		return fmt.Errorf("cluster: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("cluster: %s: %s", url, resp.Status)
	}
	return nil
}

func (c *Cluster) startAPIServer(ctx context.Context, path string) error {
	if err := c.writeAPIServerKeys(); err != nil {
		return err
	}
	port, err := FreePort()
	if err != nil {
		return err
	}
	c.url = fmt.Sprintf("https://%s:%d", c.opts.Address, port)
	begun := time.Now()
	c.apiServer = Command{Name: "kube-apiserver", Path: path, Args: c.apiServerArgs(port)}
	if err := c.runAPIServer(ctx); err != nil {
		return err
	}
	if c.admin, err = c.KubeconfigFor("admin", "system:masters"); err != nil {
		return err
	}
	say(c.opts.Log, "kube-apiserver serves at %s after %.1f s", c.url, time.Since(begun).Seconds())
	return nil
}

func (c *Cluster) runAPIServer(ctx context.Context) error {
	var err error
	if c.apiProcess, err = c.group.Start(c.apiServer); err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(c.RESTConfig())
	if err != nil {
		return fmt.Errorf("cluster: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	return c.apiProcess.Until(ctx, func(ctx context.Context) error {
		return client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
	})
}

// KillAPIServer ends kube-apiserver as kill -9 does, and starts it again after a pause. It returns when it serves.
func (c *Cluster) KillAPIServer(ctx context.Context, pause time.Duration) error {
	return c.Outage(ctx, func() {
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	})
}

// Outage ends kube-apiserver as kill -9 does, calls meanwhile, and starts it again, also when a test ends in meanwhile. It
// returns when it serves.
func (c *Cluster) Outage(ctx context.Context, meanwhile func()) (err error) {
	if err := syscall.Kill(-c.apiProcess.PID(), syscall.SIGKILL); err != nil {
		return fmt.Errorf("cluster: kube-apiserver: %w", err)
	}
	<-c.apiProcess.Done()
	defer func() { err = c.runAPIServer(ctx) }()
	meanwhile()
	return nil
}

// Freeze stops kube-apiserver as SIGSTOP does, calls meanwhile, and lets it go on, also when a test ends in meanwhile:
// connections stay open and nobody answers.
func (c *Cluster) Freeze(meanwhile func()) (err error) {
	pid := c.apiProcess.PID()
	if err := syscall.Kill(-pid, syscall.SIGSTOP); err != nil {
		return fmt.Errorf("cluster: kube-apiserver: %w", err)
	}
	defer func() { err = syscall.Kill(-pid, syscall.SIGCONT) }()
	meanwhile()
	return nil
}

func (c *Cluster) apiServerArgs(port int) []string {
	args := []string{
		"--etcd-servers=" + c.etcd, "--etcd-compaction-interval=0",
		"--bind-address=" + c.opts.Address, "--advertise-address=" + c.opts.Address, fmt.Sprintf("--secure-port=%d", port),
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
		"--client-ca-file=" + c.path("ca.crt"),
		"--tls-cert-file=" + c.path("apiserver.crt"), "--tls-private-key-file=" + c.path("apiserver.key"),
		"--service-cluster-ip-range=10.96.0.0/16",
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + c.path("sa.pub"), "--service-account-signing-key-file=" + c.path("sa.key"),
		"--requestheader-client-ca-file=" + c.path("front-proxy-ca.crt"), "--requestheader-allowed-names=front-proxy-client",
		"--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--proxy-client-cert-file=" + c.path("front-proxy-client.crt"),
		"--proxy-client-key-file=" + c.path("front-proxy-client.key"),
	}
	if c.opts.Address == loopback {
		args = append(args, "--endpoint-reconciler-type=none") // loopback addresses are not allowed in Endpoints
	}
	// The API server is a client of kubelets (logs, exec), which ask whether it may.
	args = append(args, "--kubelet-client-certificate="+c.path("kubelet-client.crt"), "--kubelet-client-key="+c.path("kubelet-client.key"),
		"--kubelet-certificate-authority="+c.path("ca.crt"), "--kubelet-preferred-address-types=InternalIP")
	return append(args, c.opts.APIServerArgs...)
}

// startControllers starts the controllers and the scheduler, without leader election: there is one of each.
func (c *Cluster) startControllers(ctx context.Context, manager, scheduler string) error {
	kubeconfig, err := c.KubeconfigFor("system:kube-controller-manager")
	if err != nil {
		return err
	}
	ports := make([]int, 2)
	for i := range ports {
		if ports[i], err = FreePort(); err != nil {
			return err
		}
	}
	processes := make([]*Process, 2)
	processes[0], err = c.group.Start(Command{Name: "kube-controller-manager", Path: manager, Args: append(controllerArgs(kubeconfig, ports[0]),
		"--use-service-account-credentials=true", "--service-account-private-key-file="+c.path("sa.key"), "--root-ca-file="+c.path("ca.crt"),
		"--client-ca-file="+c.path("ca.crt"), "--allocate-node-cidrs=false", "--node-monitor-grace-period=40s",
	)})
	if err != nil {
		return err
	}
	if kubeconfig, err = c.KubeconfigFor("system:kube-scheduler"); err != nil {
		return err
	}
	processes[1], err = c.group.Start(Command{Name: "kube-scheduler", Path: scheduler, Args: controllerArgs(kubeconfig, ports[1])})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for i, p := range processes {
		if err := p.Until(ctx, func(ctx context.Context) error {
			return getInsecure(ctx, fmt.Sprintf("https://127.0.0.1:%d/healthz", ports[i]))
		}); err != nil {
			return err
		}
	}
	return nil
}

func controllerArgs(kubeconfig string, port int) []string {
	return []string{
		"--kubeconfig=" + kubeconfig, "--authentication-kubeconfig=" + kubeconfig, "--authorization-kubeconfig=" + kubeconfig,
		"--bind-address=127.0.0.1", fmt.Sprintf("--secure-port=%d", port), "--leader-elect=false",
	}
}

func (c *Cluster) writeAPIServerKeys() error {
	var err error
	if c.ca, err = newAuthority("keelson test cluster"); err != nil {
		return err
	}
	if c.proxy, err = newAuthority("keelson test front proxy"); err != nil {
		return err
	}
	cert, key, err := c.ca.client("kube-apiserver-kubelet-client", "system:masters")
	if err != nil {
		return err
	}
	if err := writePair(c.dir, "kubelet-client", cert, key); err != nil {
		return err
	}
	cert, key, err = c.ca.server("kubernetes.default.svc", "kubernetes", "kubernetes.default", "kubernetes.default.svc.cluster.local",
		"localhost", loopback, c.opts.Address, "10.96.0.1")
	if err != nil {
		return err
	}
	if err := writePair(c.dir, "apiserver", cert, key); err != nil {
		return err
	}
	if cert, key, err = c.proxy.client("front-proxy-client"); err != nil {
		return err
	}
	if err := writePair(c.dir, "front-proxy-client", cert, key); err != nil {
		return err
	}
	files, err := serviceAccountKeys()
	if err != nil {
		return err
	}
	files["ca.crt"], files["front-proxy-ca.crt"] = c.ca.pem(), c.proxy.pem()
	for name, content := range files {
		if err := os.WriteFile(c.path(name), content, 0o600); err != nil {
			return fmt.Errorf("cluster: %w", err)
		}
	}
	return nil
}

func serviceAccountKeys() (map[string][]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("cluster: service account key: %w", err)
	}
	private, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("cluster: service account key: %w", err)
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("cluster: service account key: %w", err)
	}
	var k, p bytes.Buffer
	if err := pem.Encode(&k, &pem.Block{Type: "EC PRIVATE KEY", Bytes: private}); err != nil {
		return nil, fmt.Errorf("cluster: service account key: %w", err)
	}
	if err := pem.Encode(&p, &pem.Block{Type: "PUBLIC KEY", Bytes: public}); err != nil {
		return nil, fmt.Errorf("cluster: service account key: %w", err)
	}
	return map[string][]byte{"sa.key": k.Bytes(), "sa.pub": p.Bytes()}, nil
}
