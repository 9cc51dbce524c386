package e2e

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
)

// Names and tags as the kubelet of the pinned version and its test suite expect them.
const (
	PauseImage      = "registry.k8s.io/pause:3.10.2"
	AgnhostImage    = "registry.k8s.io/e2e-test-images/agnhost:2.66.1"
	busyboxImage    = "registry.k8s.io/e2e-test-images/busybox:1.37.0-2"
	glibcImage      = "registry.k8s.io/e2e-test-images/glibc-dns-testing:2.1.1"
	nginxImage      = "registry.k8s.io/e2e-test-images/nginx:1.27.0-2"
	regressionImage = "registry.k8s.io/e2e-test-images/regression-issue-74839:1.5"
)

// image is a container image of the test cluster.
type image struct {
	name      string
	layers    []string // paths of tar archives, the lowest first
	program   string   // entry point; empty: the arguments start with the program
	arguments []string
}

// smallImages are enough for the tests of this folder: each is one static program.
func (c *Cluster) smallImages() ([]image, error) {
	pause, err := c.packLayer("pause", "pause")
	if err != nil {
		return nil, err
	}
	agnhost, err := c.packLayer("agnhost", "agnhost")
	return []image{
		{PauseImage, []string{pause}, "/pause", nil},
		{AgnhostImage, []string{agnhost}, "/agnhost", []string{"pause"}},
	}, err
}

// suiteImages are what the network tests of the official suite start, on the Debian root that build.sh makes.
func (c *Cluster) suiteImages() ([]image, error) {
	pause, err := c.packLayer("pause", "pause")
	if err != nil {
		return nil, err
	}
	agnhost, err := c.packLayer("agnhost", "agnhost", "localhost.crt", "localhost.key")
	if err != nil {
		return nil, err
	}
	coredns, err := c.packLayer("coredns", "coredns")
	if err != nil {
		return nil, err
	}
	regression, err := c.packLayer("regression", "regression-issue-74839")
	debian := filepath.Join(c.bin, "..", "images", "debian.tar")
	return []image{
		{PauseImage, []string{pause}, "/pause", nil},
		{AgnhostImage, []string{debian, agnhost, coredns}, "/agnhost", []string{"pause"}}, // it is the suite's DNS server too
		{busyboxImage, []string{debian}, "", []string{"sh"}},
		{glibcImage, []string{debian}, "", []string{"bash"}},
		// The suite only wants a server on port 80.
		{nginxImage, []string{debian, agnhost}, "/agnhost", []string{"test-webserver"}},
		{regressionImage, []string{regression}, "/regression-issue-74839", nil},
	}, err
}

// writeImages writes the archive of images that every node imports, in the OCI image layout (image-spec, image-layout.md).
func (c *Cluster) writeImages() error {
	list := c.smallImages
	if suiteWanted() {
		list = c.suiteImages
	}
	images, err := list()
	if err != nil {
		return err
	}
	c.images = filepath.Join(c.dir, "images.tar")
	file, err := os.Create(c.images)
	if err != nil {
		return err
	}
	defer file.Close()
	archive := &imageArchive{tar: tar.NewWriter(file), written: map[string]bool{}}
	var manifests []any
	for _, image := range images {
		manifest, err := archive.add(image)
		if err != nil {
			return fmt.Errorf("making the image %s: %w", image.name, err)
		}
		manifests = append(manifests, manifest)
	}
	index := encodeJSON(map[string]any{"schemaVersion": 2, "manifests": manifests})
	if err := addFile(archive.tar, "index.json", index, 0o644); err != nil {
		return err
	}
	if err := addFile(archive.tar, "oci-layout", encodeJSON(map[string]string{"imageLayoutVersion": "1.0.0"}), 0o644); err != nil {
		return err
	}
	return archive.tar.Close()
}

// imageArchive is an archive of images; a blob that several of them share is in it once.
type imageArchive struct {
	tar     *tar.Writer
	written map[string]bool // blobs, by digest
}

// add writes the blobs of an image and returns the descriptor of its manifest.
func (a *imageArchive) add(image image) (map[string]any, error) {
	var layers, digests []any
	for _, path := range image.layers {
		layer, err := a.blobFile("layer.v1.tar", path)
		if err != nil {
			return nil, err
		}
		layers, digests = append(layers, layer), append(digests, layer["digest"])
	}
	settings := map[string]any{
		"Cmd": image.arguments,
		"Env": []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
	}
	if image.program != "" {
		settings["Entrypoint"] = []string{image.program}
	}
	config, err := a.blob("config.v1+json", encodeJSON(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "config": settings,
		"rootfs": map[string]any{"type": "layers", "diff_ids": digests},
	}))
	if err != nil {
		return nil, err
	}
	manifest, err := a.blob("manifest.v1+json", encodeJSON(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": config, "layers": layers,
	}))
	if err != nil {
		return nil, err
	}
	manifest["annotations"] = map[string]string{"io.containerd.image.name": image.name}
	return manifest, nil
}

// blob stores content under its digest and describes it as an OCI descriptor.
func (a *imageArchive) blob(mediaType string, content []byte) (map[string]any, error) {
	return a.blobReader(mediaType, bytes.NewReader(content))
}

func (a *imageArchive) blobFile(mediaType, path string) (map[string]any, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return a.blobReader(mediaType, file)
}

func (a *imageArchive) blobReader(mediaType string, content io.ReadSeeker) (map[string]any, error) {
	hash := sha256.New()
	size, err := io.Copy(hash, content)
	if err != nil {
		return nil, err
	}
	digest := fmt.Sprintf("%x", hash.Sum(nil))
	descriptor := map[string]any{"mediaType": "application/vnd.oci.image." + mediaType, "digest": "sha256:" + digest, "size": size}
	if a.written[digest] {
		return descriptor, nil
	}
	a.written[digest] = true
	if _, err := content.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	if err := a.tar.WriteHeader(&tar.Header{Name: "blobs/sha256/" + digest, Mode: 0o644, Size: size}); err != nil {
		return nil, err
	}
	_, err = io.Copy(a.tar, content)
	return descriptor, err
}

// packLayer packs built files, and the empty folders that agnhost writes to, as a file system layer; it returns its path.
func (c *Cluster) packLayer(name string, files ...string) (string, error) {
	path := filepath.Join(c.dir, name+".layer.tar")
	file, err := os.Create(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	layer := tar.NewWriter(file)
	folders := map[string]int64{"tmp/": 0o1777, "uploads/": 0o777}
	for _, folder := range slices.Sorted(maps.Keys(folders)) {
		if err := layer.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: folder, Mode: folders[folder]}); err != nil {
			return "", err
		}
	}
	for _, name := range files {
		content, err := os.ReadFile(filepath.Join(c.bin, name))
		if err != nil {
			return "", fmt.Errorf("packing %s: %w", name, err)
		}
		if err := addFile(layer, name, content, 0o755); err != nil {
			return "", err
		}
	}
	return path, layer.Close()
}

func addFile(archive *tar.Writer, name string, content []byte, mode int64) error {
	if err := archive.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: int64(len(content))}); err != nil {
		return err
	}
	_, err := archive.Write(content)
	return err
}

// encodeJSON encodes maps of strings and numbers, which cannot fail.
func encodeJSON(value any) []byte {
	encoded, _ := json.Marshal(value)
	return encoded
}
