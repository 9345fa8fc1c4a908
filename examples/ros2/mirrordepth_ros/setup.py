from setuptools import setup

NAME = "mirrordepth_ros"

setup(
    name=NAME,
    version="0.1.0",
    packages=[NAME],
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
    ],
    install_requires=["setuptools", "mirrordepth-edge"],
    zip_safe=True,
    entry_points={"console_scripts": [f"depth_node = {NAME}.depth_node:main"]},
)
